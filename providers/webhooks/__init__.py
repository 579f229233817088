"""Sending webhooks to receivers."""
