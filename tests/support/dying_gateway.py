"""A gateway that kills itself with -9 between a job's commit and its answer: ``-m tests.support.dying_gateway``."""

from __future__ import annotations

from domain.process_exit import exit_now
from gateway.__main__ import main
from storage.jobs.accept import AcceptStore
from tests.support.dying_worker import dying

if __name__ == "__main__":
    setattr(AcceptStore, "accept", dying(AcceptStore.accept, before=False))  # noqa: B010 - as in dying_worker
    exit_now(main())
