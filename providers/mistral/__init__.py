"""The adapter of Mistral's API, and of compatible servers."""
