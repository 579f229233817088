"""A gateway that kills itself with -9 between the commit of a job and its answer: ``python -m tests.dying_gateway``."""

from __future__ import annotations

import sys

from gateway.__main__ import main
from storage.jobs import JobStore
from tests.dying_worker import dying

if __name__ == "__main__":
    setattr(JobStore, "accept", dying(JobStore.accept, before=False))  # noqa: B010 - as in dying_worker
    sys.exit(main())
