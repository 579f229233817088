"""THE SCREEN. What the command line shows: streams, pages, notices. Heavy to import, so starter.py does it late."""
