"""Upstreams that others wrote: fakes of chat APIs from PyPI and npm, so that our simulator is not the only judge."""
