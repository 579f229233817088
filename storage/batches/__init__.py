"""Batches: their upload, what is asked of them, their run and their output."""
