"""The database: SQLite on one machine, Postgres on many."""
