"""The workflows, which are deterministic. Read chat_job.py first."""
