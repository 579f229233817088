"""The live page: its static files, and the data of its list and charts."""
