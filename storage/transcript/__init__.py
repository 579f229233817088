"""The text of an answer, written and read."""
