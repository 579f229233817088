"""Histories of real runs, and the means to replay and to record them."""
