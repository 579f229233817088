"""The story: deterministic, read chat_job.py first."""
