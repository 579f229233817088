"""Measurements: `python -m bench.<name>` prints what it measured, against what, and whether the target is met."""
