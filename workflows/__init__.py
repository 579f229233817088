"""The story: deterministic. Read chat_job.py first."""
