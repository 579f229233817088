"""Jobs, their attempts and their end."""
