"""The database itself: connections, threads, commits, schema, migrations."""
