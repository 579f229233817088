"""POST to the servers of strangers."""
