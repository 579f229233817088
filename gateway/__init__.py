"""The HTTP gateway: the API, server-sent events, the live page. Read app.py first."""
