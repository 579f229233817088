"""A gateway that kills itself with -9 between the commit of a job and its answer: ``python -m tests.dying_gateway``."""

from __future__ import annotations

from gateway.__main__ import main
from process_exit import exit_now
from storage.jobs import JobStore
from tests.dying_worker import dying

if __name__ == "__main__":
    setattr(JobStore, "accept", dying(JobStore.accept, before=False))  # noqa: B010 - as in dying_worker
    exit_now(main())
