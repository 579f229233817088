"""The API as Mistral speaks it: another form of the same jobs, under ``/v1``."""
