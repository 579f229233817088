"""What the inner rooms share. Imports chatjobs only."""
