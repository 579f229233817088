"""Structured answers: whether a whole answer is the JSON that it was to be, and the call that repairs one that is not.

An answer is checked when it has ended by itself: not if it was cut off at a length limit (its job is incomplete), and
not if it calls tools. What the model is asked next is the request as it was, the wrong answer, and what is wrong; the
call begins a new epoch, has the same ``response_format``, and may be interrupted and continued like any other.
"""

from __future__ import annotations

import json

from activities import continuation, failures
from activities.attempt import Continues, RunningAttempt
from activities.schema_checks import UNDECIDED, SchemaChecks
from chatjobs.contracts import ChatRequest, JsonSchema
from chatjobs.errors import bounded
from domain.continuing import own_prefix
from domain.outcomes import LENGTH_LIMITS, AttemptOutcome
from domain.ports import Finish
from domain.repairs import problem_text
from domain.values import Repair
from storage.jobs.attempts import AttemptStore


class AnswerCheck:
    """Checks whole answers before their jobs complete."""

    def __init__(self, attempts: AttemptStore, checks: SchemaChecks) -> None:
        self._attempts = attempts
        self._checks = checks

    async def ended(self, attempt: RunningAttempt, finish: Finish) -> Continues | None:
        """None if the answer is as it was to be, else that another attempt repairs it.

        Raises ApplicationError where no repair is left, or it is not known whether the answer matches.
        """
        if not is_checked(attempt.request) or finish.reason in LENGTH_LIMITS or finish.tool_calls:
            return None
        job_writer = attempt.job_writer
        job_writer.end_text()
        await job_writer.flush()
        runs = await self._attempts.written(job_writer.job_id, fence=job_writer.fence, epoch=job_writer.epoch)
        content = continuation.content(runs)
        whole, tenant = own_prefix(attempt.request) + content, attempt.claim.asker.tenant if attempt.claim.asker else ""
        found = await self._checks.check(_schema(attempt.request), whole, tenant)
        if found.matches:
            return None
        if found.undecided is not None:
            code, what = AttemptOutcome.SCHEMA_CHECK_FAILED.value, "the schema" if _schema(attempt.request) else "JSON"
            why = f"The answer could not be checked against {what}: {UNDECIDED[found.undecided]}"
            raise failures.permanent(code, f"{why}. Its text is kept; simplify the schema, or check the text yourself")
        attempt.wrong = Repair(job_writer.epoch, content, problem_text(found.problems, len(content)))
        first = found.problems[0]
        message = bounded(f"The answer is not the JSON that was asked for: {first['place'] or 'it'} {first['words']}")
        made, most = attempt.past.mismatches, attempt.request.max_repairs
        if made >= most:
            after = f" (after {most} repairs)" if most > 1 else " (after a repair)" if most else ""
            raise failures.permanent(AttemptOutcome.SCHEMA_MISMATCH.value, message + after, retryable=True)
        return Continues(AttemptOutcome.SCHEMA_MISMATCH, message)


def is_checked(request: ChatRequest) -> bool:
    """Whether the answer is to be JSON."""
    return request.response_format is not None and request.response_format.type != "text"


def _schema(request: ChatRequest) -> str | None:
    """The schema as JSON; None where any object is right."""
    form = request.response_format
    schema: JsonSchema | None = form.json_schema if form is not None and form.type == "json_schema" else None
    return None if schema is None else json.dumps(schema.schema_definition)
