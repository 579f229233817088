"""Authentication: keys, sessions, stream tokens, origins."""
