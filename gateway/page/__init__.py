"""The live page: its files, and what its list and charts show."""
