"""Outbound adapters: all that imports a vendor's SDK or connects to another company's server."""
