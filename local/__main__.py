"""``python -m local``: see local/stack.py."""

from domain.process_exit import exit_now
from local.stack import main

if __name__ == "__main__":
    exit_now(main())
