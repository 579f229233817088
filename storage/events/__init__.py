"""The events of all jobs: numbered, read, removed."""
