"""The end of a job: one transaction, one outcome, and the webhook with it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select

from chatjobs.contracts import Channel, FunctionCall, JobStatus, JsonObject, PlacedPart, ToolCall, Usage
from chatjobs.errors import JobFinished, JobNotFound
from domain.errors import FenceLost, SealConflict
from domain.values import Cursor
from storage.engine.database import Database
from storage.engine.schema import transcript
from storage.jobs.listing import JobFilter, JobList
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from storage.transcript.writer import TranscriptWriter
from storage.webhooks.deliveries import DeliveryStore
from tests.support.factories import Copy, accepted, answered, claimed, ending, failing, finished, wrote

WEBHOOK = {"url": "https://receiver.example/hook"}


async def test_a_sealed_job_shows_its_whole_result(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store, metadata={"a": "b"})
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    for channel, text in [(Channel.REASONING, "Hm"), (Channel.CONTENT, "Hé"), (Channel.CONTENT, "llo 😀")]:
        job_writer.append(channel, text)
    usage = Usage(prompt_tokens=4, completion_tokens=3, total_tokens=7)
    await job_writer.finish(finished(claim, usage=usage, first_token_ms=120, tokens_per_second=40.5))
    sealed = await store.seals.seal(ending(job_id, position=9), run_id="run-1")
    sha256 = hashlib.sha256("Héllo 😀".encode()).hexdigest()
    assert (sealed.status, sealed.position, sealed.sha256) == (JobStatus.COMPLETED, 9, sha256)
    assert sealed.delivery_id is None
    job = await store.queries.get(job_id)
    assert (job.content, job.reasoning, job.position, job.sha256) == ("Héllo 😀", "Hm", 9, sha256)
    assert (job.finish_reason, job.usage, job.usage_estimated, job.metadata) == ("stop", usage, False, {"a": "b"})
    (attempt,) = job.attempts
    assert (attempt.outcome, attempt.first_token_ms, attempt.tokens_per_second) == ("finished", 120, 40.5)
    assert job.completed_at is not None
    assert job.created_at <= job.completed_at <= datetime.now(UTC)


async def test_the_transcript_is_compacted(store: JobStore, writer: TranscriptWriter, database: Database) -> None:
    job_id = await answered(store, writer, *["word "] * 300)
    await store.seals.seal(ending(job_id), run_id="run-1")
    async with database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(transcript)) == 0
    assert (await store.queries.get(job_id)).content == "word " * 300


@pytest.mark.parametrize("reason", ["length", "model_length"])
async def test_a_length_limit_makes_it_incomplete(store: JobStore, writer: TranscriptWriter, reason: str) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "Hel")
    await job_writer.finish(finished(claim, reason))
    assert (await store.seals.seal(ending(job_id), run_id="run-1")).status is JobStatus.INCOMPLETE
    assert (await store.queries.get(job_id)).finish_reason == reason


async def test_an_answer_may_be_tool_calls_only(store: JobStore, writer: TranscriptWriter) -> None:
    """Also with what no database takes as it is: lone surrogates and NUL in the arguments."""
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    call = ToolCall(id="c1", function=FunctionCall(name="look", arguments='{"at": "\ud83d\0"}'))
    await writer.open(claim).finish(finished(claim, "tool_calls", tool_calls=(call,)))
    shown = [await store.queries.get(job_id)]
    await store.seals.seal(ending(job_id, position=0), run_id="run-1")
    shown.append(await store.queries.get(job_id))
    for job in shown:
        assert job.tool_calls is not None
        assert job.tool_calls[0].function.arguments == '{"at": "\ufffd\ufffd"}'
        assert (job.content, job.finish_reason) == ("", "tool_calls")
    assert shown[1].status is JobStatus.COMPLETED


async def test_parts_that_are_not_text_survive(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "See")
    part = PlacedPart(position=3, part={"type": "reference", "reference_ids": [1, "a\0"]})
    await job_writer.finish(finished(claim, parts=(part,)))
    before = await store.queries.get(job_id)
    await store.seals.seal(ending(job_id), run_id="run-1")
    after = await store.queries.get(job_id)
    expected = (PlacedPart(position=3, part={"type": "reference", "reference_ids": [1, "a\ufffd"]}),)
    assert before.content_parts == after.content_parts == expected


async def test_what_is_beside_the_answer_survives_until_its_content_is_deleted(
    store: JobStore, writer: TranscriptWriter, database: Database
) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "Hello")
    extra: JsonObject = {"citations": ["x"], "choice": {"logprobs": {"content": [{"token": "Hello\0"}]}}}
    await job_writer.finish(finished(claim, extra=extra))
    before = await store.queries.get(job_id)
    await store.seals.seal(ending(job_id), run_id="run-1")
    after, outline = await store.queries.get(job_id), await store.queries.outline(job_id)
    expected = {"citations": ["x"], "choice": {"logprobs": {"content": [{"token": "Hello\ufffd"}]}}}
    assert before.extra == after.extra == outline.extra == expected
    (listed,) = await JobList(database).page(JobFilter(), tenant=None, before=None, limit=1)
    assert listed.extra is None
    await store.seals.delete(job_id)
    assert (await store.queries.get(job_id)).extra is None


async def test_text_and_finish_arrive_together(store: JobStore, writer: TranscriptWriter) -> None:
    """Nobody sees an end without the last words, nor the last words of a finished answer without the end."""
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    job_writer.append(Channel.CONTENT, "last words")
    await job_writer.finish(finished(claim))
    job = await store.queries.get(job_id)
    assert (job.content, job.finish_reason) == ("last words", "stop")


async def test_nothing_follows_a_finish(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "Hello")
    await job_writer.finish(finished(claim))
    job_writer.append(Channel.CONTENT, " more")
    with pytest.raises(FenceLost):
        await job_writer.flush()
    assert (await store.queries.get(job_id)).content == "Hello"


# ------------------------------------------------------------------------------------------------ the verdict


async def test_sealing_again_returns_the_outcome_that_is(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await answered(store, writer)
    first = await store.seals.seal(ending(job_id), run_id="run-1")
    assert await store.seals.seal(ending(job_id), run_id="run-1") == first
    assert await store.seals.seal(failing(job_id), run_id="run-2") == first
    assert await store.seals.seal(ending(job_id, JobStatus.CANCELLED), run_id="run-1") == first


async def test_parallel_seals_give_one_outcome(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await answered(store, writer, webhook=WEBHOOK)
    sealed = await asyncio.gather(*(store.seals.seal(ending(job_id), run_id=f"run-{n}") for n in range(5)))
    assert all(one == sealed[0] for one in sealed)
    assert len((await store.queries.get(job_id)).deliveries) == 1


async def test_another_position_is_not_sealed(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await answered(store, writer, "Hello")
    with pytest.raises(SealConflict, match="at 5, not at 4"):
        await store.seals.seal(ending(job_id, position=4), run_id="run-1")
    assert (await store.queries.get(job_id)).status is JobStatus.IN_PROGRESS


async def test_an_answer_that_is_not_whole_is_not_completed(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    await wrote(writer, await claimed(store, job_id), "Hel")
    with pytest.raises(SealConflict, match="not whole"):
        await store.seals.seal(ending(job_id), run_id="run-1")


async def test_nobody_seals_a_job_that_is_not_there(store: JobStore) -> None:
    with pytest.raises(JobNotFound):
        await store.seals.seal(failing("nobody"), run_id="run-1")


async def test_a_cancel_that_was_accepted_wins(store: JobStore, writer: TranscriptWriter) -> None:
    """Also over an answer that became whole meanwhile, whose text, usage and end are kept."""
    job_id = await answered(store, writer)
    await store.seals.request_cancel(job_id)
    assert (await store.seals.seal(ending(job_id, position=9), run_id="run-1")).status is JobStatus.CANCELLED
    job = await store.queries.get(job_id)
    assert (job.content, job.finish_reason, job.error) == ("Hello you", "stop", None)
    assert [attempt.outcome for attempt in job.attempts] == ["finished"]


async def test_a_whole_answer_wins_over_a_failure(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await answered(store, writer)
    sealed = await store.seals.seal(failing(job_id), run_id="run-1")
    assert (sealed.status, sealed.error) == (JobStatus.COMPLETED, None)


async def test_cancel_and_seal_at_once_agree(store: JobStore, writer: TranscriptWriter) -> None:
    """Either the cancel is accepted and the job cancelled, or it is told that the job has ended."""
    for _ in range(5):
        job_id = await answered(store, writer)
        sealing = store.seals.seal(ending(job_id), run_id="run-1")
        sealed, cancelled = await asyncio.gather(sealing, store.seals.request_cancel(job_id), return_exceptions=True)
        assert not isinstance(sealed, BaseException)
        accepted_cancel = not isinstance(cancelled, JobFinished)
        assert accepted_cancel == (sealed.status is JobStatus.CANCELLED)


async def test_a_failed_job_keeps_its_partial_text(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    await wrote(writer, await claimed(store, job_id), "Hel")
    sealed = await store.seals.seal(failing(job_id), run_id="run-1")
    job = await store.queries.get(job_id)
    assert (job.status, job.content, job.error, job.finish_reason) == (JobStatus.FAILED, "Hel", sealed.error, None)
    assert [attempt.outcome for attempt in job.attempts] == ["upstream_cut"]


# ----------------------------------------------------------------------------------------------- the delivery


async def test_the_webhook_is_stored_with_the_outcome(
    store: JobStore, writer: TranscriptWriter, database: Database
) -> None:
    job_id = await answered(store, writer, "Hé", webhook=WEBHOOK)
    sealed = await store.seals.seal(ending(job_id), run_id="run-1")
    assert sealed.delivery_id is not None
    webhook = await DeliveryStore(database).outgoing(sealed.delivery_id)
    body = json.loads(webhook.body)
    assert (webhook.url, webhook.tenant, webhook.status, webhook.tries) == (WEBHOOK["url"], "default", "pending", 0)
    assert (body["event"], body["timestamp"]) == ("chat.completed", webhook.body_timestamp)
    assert (body["data"]["jobId"], body["data"]["content"], body["data"]["sha256"]) == (job_id, "Hé", sealed.sha256)
    (delivery,) = (await store.queries.get(job_id)).deliveries
    assert delivery.id == sealed.delivery_id


async def test_a_large_answer_is_left_out_of_the_webhook(
    store: JobStore, writer: TranscriptWriter, database: Database
) -> None:
    job_id = await answered(store, writer, "é" * 40_000, webhook=WEBHOOK)
    sealed = await store.seals.seal(ending(job_id), run_id="run-1")
    data = json.loads((await DeliveryStore(database).outgoing(sealed.delivery_id or "")).body)["data"]
    assert "content" not in data
    assert (data["contentOmitted"], data["sha256"]) == (True, sealed.sha256)


@pytest.mark.parametrize(
    ("events", "status", "announced"),
    [
        (["chat.failed"], JobStatus.FAILED, True),
        (["chat.failed"], JobStatus.CANCELLED, False),
        (["chat.cancelled", "chat.completed"], JobStatus.CANCELLED, True),
        ([], JobStatus.FAILED, False),
    ],
)
async def test_only_subscribed_events_are_announced(
    store: JobStore, events: list[str], status: Any, announced: bool
) -> None:
    job_id = await accepted(store, webhook={**WEBHOOK, "events": events})
    sealed = await store.seals.seal(ending(job_id, status), run_id="run-1")
    assert (sealed.delivery_id is not None) == announced


# -------------------------------------------------------------------------------------------------- reopening


async def test_a_reset_of_a_failed_job_goes_on_with_its_text(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader
) -> None:
    """A reader who saw the failure and holds its end resumes there; the new outcome has a webhook id of its own."""
    job_id = await accepted(store, webhook=WEBHOOK)
    job_writer = writer.open(await claimed(store, job_id))
    for number in range(60):
        job_writer.append(Channel.REASONING if number % 3 == 0 else Channel.CONTENT, f"piece 😀 {number}. ")
    await job_writer.flush()
    before = await reader.read(Cursor(job_id))
    failed = await store.seals.seal(failing(job_id), run_id="run-1")
    seen = await reader.read(Cursor(job_id))
    assert (before.runs, seen.status) == (seen.runs, JobStatus.FAILED)

    claim = await claimed(store, job_id, run_id="run-2")
    assert (claim.outcome, claim.position, claim.epoch, claim.attempt) == ("taken", seen.position, 1, 2)
    reopened = await reader.read(Cursor(job_id))
    assert (reopened.runs, reopened.status) == (before.runs, JobStatus.IN_PROGRESS)
    job_writer = await wrote(writer, claim, "The rest")
    await job_writer.finish(finished(claim))
    sealed = await store.seals.seal(ending(job_id), run_id="run-2")

    copy = Copy()
    copy.take(seen)
    copy.take(await reader.read(seen.cursor))
    job = await store.queries.get(job_id)
    assert (copy.texts[Channel.CONTENT], copy.texts[Channel.REASONING]) == (job.content, job.reasoning)
    assert (job.status, job.error, copy.resets) == (JobStatus.COMPLETED, None, 0)
    assert sealed.delivery_id is not None
    assert sealed.delivery_id.endswith(".2")
    assert failed.delivery_id in [delivery.id for delivery in job.deliveries]


async def test_a_job_that_fails_again_keeps_the_id_of_its_event(store: JobStore) -> None:
    job_id = await accepted(store, webhook=WEBHOOK)
    await claimed(store, job_id)
    first = await store.seals.seal(failing(job_id), run_id="run-1")
    await claimed(store, job_id, run_id="run-2")
    second = await store.seals.seal(failing(job_id), run_id="run-2")
    assert second.delivery_id == f"{first.delivery_id}.2"
    assert [attempt.outcome for attempt in (await store.queries.get(job_id)).attempts] == [
        "upstream_cut",
        "upstream_cut",
    ]
