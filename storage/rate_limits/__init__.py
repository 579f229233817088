"""Rate limits of the model: lanes with their limits, queues and circuit breakers."""
