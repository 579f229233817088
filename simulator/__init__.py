"""A Mistral that needs no key: the same wire, with faults on request."""
