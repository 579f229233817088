"""Everything on one machine: `make run`."""
