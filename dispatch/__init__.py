"""Between storage and Temporal: accept, start, cancel and look after jobs."""
