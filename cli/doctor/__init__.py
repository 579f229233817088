"""`starter.py doctor`: what is missing or wrong here, and how to fix it."""
