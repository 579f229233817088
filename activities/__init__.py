"""The activities: the steps of a job that reach the model, storage or a receiver."""
