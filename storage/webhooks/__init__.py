"""Deliveries of webhooks, and the receivers."""
