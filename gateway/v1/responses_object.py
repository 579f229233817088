"""A job as a response of OpenAI's.

Source of the format: OpenAI's API reference, "The response object".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from chatjobs.contracts import Channel, Job, JobError, JobStatus, ToolCall, Usage
from domain.values import TextRun
from domain.webhook_body import RESPONSE_ID_PREFIX
from gateway.v1.responses_input import JsonDict, arguments_text
from gateway.v1.responses_request import ResponseSettings

PREFIXES: Final = {Channel.CONTENT: "msg", Channel.REASONING: "rs"}
COMPLETED: Final = "completed"
IN_PROGRESS: Final = "in_progress"
INCOMPLETE: Final = "incomplete"
CALLED: Final = (JobStatus.COMPLETED, JobStatus.INCOMPLETE)
"""The statuses of a job whose calls of functions are whole."""
RATE_LIMITED: Final = "upstream_rate_limited"
ERROR_CODES: Final = {
    RATE_LIMITED: "rate_limit_exceeded",
    "upstream_no_allowance": "rate_limit_exceeded",
    "upstream_rejected": "invalid_prompt",
    "model_not_found": "invalid_prompt",
    "prefix_not_continued": "invalid_prompt",
}
"""OpenAI's code of a job's error; ``server_error`` for all others. Ours is the error's ``type``."""


class ResponseParts(NamedTuple):
    """What a response is made of. ``runs``: the whole text, one run for each change of channel."""

    job: Job
    settings: ResponseSettings
    runs: Sequence[TextRun] = ()


def response_object(parts: ResponseParts, status: JobStatus | None = None) -> JsonDict:
    """The object, with the output so far. ``status``: another one than the job's; then there is no output."""
    job, settings, runs = parts
    shown = job.status if status is None else status
    ended = shown is job.status and shown.terminal
    completed_at = int(job.completed_at.timestamp()) if job.completed_at and shown is JobStatus.COMPLETED else None
    reason = {"reason": "max_output_tokens"} if shown is JobStatus.INCOMPLETE else None
    return {
        "id": f"{RESPONSE_ID_PREFIX}{job.job_id}",
        "object": "response",
        "created_at": int(job.created_at.timestamp()),
        "status": shown.value,
        "completed_at": completed_at,
        "error": _error(job.error) if ended and job.error else None,
        "incomplete_details": reason,
        "metadata": dict(job.metadata),
        "model": job.model,
        "output": output(job, runs, settings) if status is None else [],
        "usage": usage(job.usage) if ended and job.usage else None,
        **settings.echo,
    }


def output(job: Job, runs: Sequence[TextRun], settings: ResponseSettings) -> list[JsonDict]:
    """The items of an answer: one for each run of text, then one for each call of a function."""
    calls = [*(job.tool_calls or ())] if job.status in CALLED else []
    last = COMPLETED if calls else last_status(job.status)
    statuses = [COMPLETED] * (len(runs) - 1) + [last]
    texts = [text_item(job.job_id, index, run.channel, run.text, statuses[index]) for index, run in enumerate(runs)]
    return texts + [call_item(job.job_id, len(runs) + n, call, settings) for n, call in enumerate(calls)]


def last_status(status: JobStatus) -> str:
    """The status of the last item of an answer, from the job's."""
    match status:
        case JobStatus.COMPLETED:
            return COMPLETED
        case JobStatus.QUEUED | JobStatus.IN_PROGRESS:
            return IN_PROGRESS
        case _:
            return INCOMPLETE


def item_id(job_id: str, index: int, channel: Channel) -> str:
    return f"{PREFIXES[channel]}_{job_id}_{index}"


def text_item(job_id: str, index: int, channel: Channel, text: str | None, status: str) -> JsonDict:
    """A message or a reasoning item. ``text``: None for one without content, as when it is announced."""
    named = {"id": item_id(job_id, index, channel), "status": status}
    if channel is Channel.REASONING:
        return named | {"type": "reasoning", "summary": [] if text is None else [text_part(channel, text)]}
    content = [] if text is None else [text_part(channel, text)]
    return named | {"type": "message", "role": "assistant", "content": content}


def text_part(channel: Channel, text: str) -> JsonDict:
    """The one part of an item."""
    if channel is Channel.REASONING:
        return {"type": "summary_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(
    job_id: str, index: int, call: ToolCall, settings: ResponseSettings, *, announced: bool = False
) -> JsonDict:
    """A call of a function. ``announced``: without its arguments, which follow."""
    return {
        "id": f"fc_{job_id}_{index}",
        "type": "function_call",
        "status": IN_PROGRESS if announced else COMPLETED,
        "call_id": settings.calls.get(call.id, call.id),
        "name": call.function.name,
        "arguments": "" if announced else arguments_text(call.function.arguments),
    }


def usage(counted: Usage) -> JsonDict:
    """OpenAI's names for what Mistral counted. Counters that Mistral does not report are 0."""
    more: dict[str, Any] = counted.model_extra or {}
    of_prompt, of_answer = more.get("prompt_tokens_details"), more.get("completion_tokens_details")
    cached = of_prompt.get("cached_tokens") if isinstance(of_prompt, dict) else more.get("num_cached_tokens")
    reasoning = of_answer.get("reasoning_tokens") if isinstance(of_answer, dict) else None
    return {
        "input_tokens": counted.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": 0},
        "output_tokens": counted.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning or 0},
        "total_tokens": counted.total_tokens,
    }


def _error(error: JobError) -> JsonDict:
    cause = error.cause.code if error.cause else None
    code = ERROR_CODES["upstream_rate_limited"] if cause == RATE_LIMITED else ERROR_CODES.get(error.code)
    return {"code": code or "server_error", "message": error.message, "type": error.code}
