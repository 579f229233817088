"""Mistral's API, and servers that speak it."""
