"""What is missing or wrong here, and how to mend it."""
