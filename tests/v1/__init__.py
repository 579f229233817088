"""The API under /v1, as the official clients use it."""
