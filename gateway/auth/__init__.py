"""Keys, sessions, and who may see what."""
