"""The hands: what a job does to the world, with every vendor injected."""
