"""The synchronous client has every method of the asynchronous one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from chatjobs.batches import BatchCalls, SyncBatchCalls
from chatjobs.client import AsyncChatJobs, ChatJobs
from chatjobs.schedules import Schedules, SyncSchedules
from chatjobs.sync import SyncIterator, SyncStream

TWINS = {AsyncChatJobs: ChatJobs, BatchCalls: SyncBatchCalls, Schedules: SyncSchedules}
ASYNCHRONOUS_ONLY = {"aclose"}


def public_methods(of: type) -> Iterator[str]:
    """The names of the public methods of a class, and of its constructor if callers use it."""
    yield from (name for name, _ in inspect.getmembers(of, callable) if not name.startswith("_"))


def different(one: type, other: type) -> list[str]:
    """The public methods of a class that are not there in another, or not with the same parameters and docstring."""
    return [
        name
        for name in public_methods(one)
        if name not in ASYNCHRONOUS_ONLY
        and (
            not hasattr(other, name)
            or inspect.signature(getattr(one, name)).parameters != inspect.signature(getattr(other, name)).parameters
            or inspect.getdoc(getattr(one, name)) != inspect.getdoc(getattr(other, name))
        )
    ]


@pytest.mark.parametrize("asynchronous", TWINS, ids=lambda one: one.__name__)
def test_every_method_has_a_synchronous_twin_with_the_same_parameters(asynchronous: type) -> None:
    assert different(asynchronous, TWINS[asynchronous]) == []
    assert len(list(public_methods(asynchronous))) >= 7


def test_a_missing_or_different_twin_would_be_found() -> None:
    """The test above can fail."""

    class Lacking:
        def cancel(self, job_id: str, why: str) -> None:
            """Cancel a job, durably; its status now. A second call does the same. Raises JobNotFound, JobFinished."""

        get = AsyncChatJobs.get

    found = different(AsyncChatJobs, Lacking)
    assert {"cancel", "submit", "stream"} <= set(found)
    assert "get" not in found


def test_the_constructors_have_the_same_parameters() -> None:
    assert inspect.signature(ChatJobs).parameters == inspect.signature(AsyncChatJobs).parameters


def test_the_results_of_the_twins_are_synchronous() -> None:
    """At run time, for documentation and editors; for type checkers: tests/system/test_sync_client.py is typed."""
    returned = {name: inspect.signature(getattr(ChatJobs, name)).return_annotation for name in public_methods(ChatJobs)}
    assert returned["get"] == "Job"
    assert returned["list"] == f"{SyncIterator.__name__}[Job]"
    assert returned["stream"] == f"{SyncStream.__name__}[StreamEvent]"
    assert [name for name, what in returned.items() if "Async" in str(what) or "Coroutine" in str(what)] == []
    coroutines = {name for name in public_methods(ChatJobs) if inspect.iscoroutinefunction(getattr(ChatJobs, name))}
    assert coroutines == ASYNCHRONOUS_ONLY
