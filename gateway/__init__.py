"""The door: the HTTP API, server-sent events, the live page. Read app.py first."""
