"""The outside: the only files that name a vendor or open a socket to a stranger."""
