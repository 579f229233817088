"""The package that other services install: contracts, client, webhook signatures (read contracts/ first)."""
