"""Outbound adapters: the only files that name a vendor or open a socket to another company's server."""
