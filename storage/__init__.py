"""The memory: SQLite on one machine, Postgres on many."""
