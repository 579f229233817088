"""The arguments of a workflow's start, from any language, valid or not.

The SDK decodes arguments by the types of ``run``, and only if their number is that of its parameters. One that does not
decode, or one too many, fails the workflow *task*, which the server retries for ever: the caller sees a run that hangs.
So ``run`` gets the raw arguments, and they are decoded here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from chatjobs.contracts import canonical_json, parse
from chatjobs.errors import InvalidRequest, Problem
from domain.payloads import ScheduledRef

with workflow.unsafe.imports_passed_through():
    from pydantic import BaseModel
    from pydantic_core import from_json

M = TypeVar("M", bound=BaseModel)


class Input(NamedTuple):
    """The argument of a run as decoded JSON; ``problem`` is the reason for which it cannot be decoded."""

    value: Any = None
    problem: str | None = None

    def as_a(self, model: type[M]) -> M:
        """The argument as a model. Raises ApplicationError, which ends the run."""
        try:
            if self.problem is not None:
                raise InvalidRequest([Problem("", self.problem)])
            return parse(model, self.value)
        except InvalidRequest as error:
            raise ApplicationError(error.message, type=error.code, non_retryable=True) from None

    def names_stored(self, job_id: str) -> bool:
        """Whether the argument names the stored job of that id and nothing else."""
        fields = self.value.items() if isinstance(self.value, dict) else ()
        return {name: value for name, value in fields if value is not None} == {"jobId": job_id}

    @property
    def scheduled(self) -> ScheduledRef | None:
        """The argument of a run that one of our schedules has started; None for any other argument."""
        if not isinstance(self.value, dict) or "schedule" not in self.value:
            return None
        return self.as_a(ScheduledRef)


def lenient(run: Callable[[Any, Input], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Pass any arguments to ``run`` as an Input: the SDK sees one parameter that is not decoded."""

    @functools.wraps(run)
    async def run_with(self: Any, *arguments: Any) -> Any:
        return await run(self, read(arguments))

    raw = inspect.Parameter("start", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=RawValue)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run_with.__signature__ = inspect.Signature([this, raw])  # type: ignore[attr-defined]  # what inspect looks for
    run_with.__annotations__ = {"start": RawValue, "return": run.__annotations__["return"]}
    return run_with


def read(arguments: tuple[Any, ...]) -> Input:
    """Decode the one argument that is expected."""
    if len(arguments) != 1:
        return Input(problem=f"one argument is expected, {len(arguments)} were given")
    payload = arguments[0].payload
    encoding = payload.metadata.get("encoding", b"")
    if encoding == b"binary/null":
        return Input(None)
    if encoding != b"json/plain":
        return Input(problem="the argument's encoding must be json/plain")
    try:
        value = from_json(payload.data, allow_inf_nan=False)
        canonical_json(value)  # 1e999 is JSON, but a number that cannot be passed on
        return Input(value)
    except ValueError as error:
        return Input(problem=f"the argument is not JSON: {error}")
