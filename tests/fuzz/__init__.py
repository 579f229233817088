"""Bytes from strangers, made up: what may come of them, and what may not. See targets.py; ``make fuzz`` runs them."""
