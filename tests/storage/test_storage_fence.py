"""Claims and the fence: of several attempts at one job, only the newest writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from chatjobs.contracts import Channel, JobStatus, Usage
from chatjobs.errors import JobNotFound
from domain.errors import FenceLost
from domain.outcomes import AttemptOutcome
from domain.tokens import Sample
from domain.values import AttemptEnd, Cursor, Stretch
from storage.engine.database import Database
from storage.engine.schema import attempts
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from storage.transcript.writer import JobWriter, TranscriptWriter
from tests.support.factories import accepted, answered, claimed, ending, failing, finished, wrote


async def _content(store: JobStore, job_id: str) -> str | None:
    return (await store.queries.get(job_id)).content


async def _append(job_writer: JobWriter, text: str) -> None:
    job_writer.append(Channel.CONTENT, text)
    await job_writer.flush()


async def test_a_claim_tells_where_to_go_on(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store, "Why?")
    first = await claimed(store, job_id)
    assert (first.outcome, first.attempt, first.position, first.epoch) == ("taken", 1, 0, 1)
    assert first.request is not None
    await wrote(writer, first, "Hello", " you")
    second = await claimed(store, job_id)
    assert (second.attempt, second.position, second.token_count) == (2, 9, 2)
    assert second.started_at == first.started_at


async def test_nobody_claims_a_job_that_is_not_there(store: JobStore) -> None:
    with pytest.raises(JobNotFound):
        await claimed(store, "nobody")


async def test_a_zombie_is_stopped_before_its_claim(store: JobStore) -> None:
    job_id = await accepted(store)
    await claimed(store, job_id, fence=2)
    with pytest.raises(FenceLost):
        await claimed(store, job_id, fence=1)
    with pytest.raises(FenceLost):
        await store.attempts.claim(job_id, fence=2, claimant="another", run_id="run-1")


async def test_a_zombie_is_stopped_between_claim_and_write(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    zombie = await wrote(writer, claim, "Hello")
    heir = writer.open(await claimed(store, job_id))
    with pytest.raises(FenceLost):
        await _append(zombie, " zombie")
    with pytest.raises(FenceLost):
        await zombie.finish(finished(claim))
    await _append(heir, " you")
    assert await _content(store, job_id) == "Hello you"


async def test_zombie_and_heir_in_one_batch(store: JobStore, writer: TranscriptWriter) -> None:
    """Both in one process, both with text pending: only the heir's goes in, and the zombie learns it."""
    job_id = await accepted(store)
    old, new = await claimed(store, job_id), await claimed(store, job_id)
    results = await asyncio.gather(
        wrote(writer, old, "zombie " * 100), wrote(writer, new, "heir"), return_exceptions=True
    )
    assert isinstance(results[0], FenceLost)
    assert await _content(store, job_id) == "heir"


async def test_the_seal_stops_whoever_still_writes(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "Hello")
    await store.seals.seal(failing(job_id), run_id="run-1")
    with pytest.raises(FenceLost):
        await _append(job_writer, " you")
    with pytest.raises(FenceLost):
        await store.attempts.restart(job_id, fence=claim.fence, reason="restart")
    assert await _content(store, job_id) == "Hello"


async def test_a_zombie_of_the_failed_run_is_stopped_across_a_reset(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    zombie = await wrote(writer, await claimed(store, job_id), "Hello")
    await store.seals.seal(failing(job_id), run_id="run-1")
    reset = await claimed(store, job_id, run_id="run-2")
    with pytest.raises(FenceLost):
        await _append(zombie, " zombie")
    await wrote(writer, reset, " you")
    assert await _content(store, job_id) == "Hello you"


async def test_a_claim_may_be_repeated_after_a_lost_answer(store: JobStore) -> None:
    job_id = await accepted(store)
    await claimed(store, job_id, fence=1)
    first, again = [await claimed(store, job_id, fence=2) for _ in range(2)]
    assert first == again
    assert len((await store.queries.get(job_id)).attempts) == 2


async def test_an_answer_that_is_whole_is_not_asked_for_again(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await answered(store, writer)
    claim = await claimed(store, job_id)
    assert (claim.outcome, claim.position, claim.finish_reason) == ("finished", 9, "stop")
    assert len((await store.queries.get(job_id)).attempts) == 1


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.CANCELLED])
async def test_a_reset_reuses_every_outcome_but_a_failure(
    store: JobStore, writer: TranscriptWriter, status: JobStatus
) -> None:
    job_id = await answered(store, writer)
    await store.seals.seal(ending(job_id, status), run_id="run-1")  # type: ignore[arg-type]
    assert (await claimed(store, job_id, run_id="run-2")).outcome == "sealed"
    assert (await store.queries.get(job_id)).status is status


async def test_the_run_that_failed_a_job_does_not_reopen_it(store: JobStore) -> None:
    job_id = await accepted(store)
    await store.seals.seal(failing(job_id), run_id="run-1")
    assert (await claimed(store, job_id, run_id="run-1")).outcome == "sealed"


async def test_a_restart_begins_another_epoch(
    store: JobStore, writer: TranscriptWriter, reader: TranscriptReader
) -> None:
    job_id = await accepted(store)
    await wrote(writer, await claimed(store, job_id), "Wrong " * 100)
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    job_writer.restarted(await store.attempts.restart(job_id, fence=claim.fence, reason="restart"))
    await _append(job_writer, "Right")
    found = await store.queries.get(job_id)
    assert (found.content, found.epoch, found.position) == ("Right", 2, 5)
    piece = await reader.read(Cursor(job_id, 1, 3))
    assert (piece.reset, piece.reset_reason, [run.text for run in piece.runs]) == (True, "restart", ["Right"])


async def test_a_restart_needs_the_fence(store: JobStore) -> None:
    job_id = await accepted(store)
    old = await claimed(store, job_id)
    await claimed(store, job_id)
    with pytest.raises(FenceLost):
        await store.attempts.restart(job_id, fence=old.fence, reason="restart")


async def test_a_half_character_does_not_survive_a_restart(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "a\ud83d")
    job_writer.restarted(await store.attempts.restart(job_id, fence=claim.fence, reason="restart"))
    await _append(job_writer, "b")
    assert await _content(store, job_id) == "b"


# ------------------------------------------------------------------------------------------------------ ledger


async def test_the_ledger_tells_what_became_of_each_attempt(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    outcomes = ["upstream_cut", None, "handed_over", "upstream_rate_limited"]
    for outcome in outcomes:
        claim = await claimed(store, job_id)
        await wrote(writer, claim, "a", "b", "c")
        if outcome:
            await store.attempts.end(job_id, claim.attempt, claim.fence, AttemptEnd(outcome, 503, 12, 3.5))
    last = await claimed(store, job_id)
    assert (last.attempt, last.past.failures) == (5, 1)  # a lost worker, a deploy and throttling are no failures
    ledger = (await store.queries.get(job_id)).attempts
    assert [a.outcome for a in ledger] == ["upstream_cut", "lost", "handed_over", "upstream_rate_limited", None]
    assert (ledger[0].http_status, ledger[0].first_token_ms, ledger[0].tokens_per_second) == (503, 12, 3.5)
    assert [(a.estimated, a.usage and a.usage.completion_tokens) for a in ledger[:4]] == [(True, 3)] * 4
    assert all(a.ended_at and a.ended_at >= a.started_at for a in ledger[:4])


async def test_usage_is_summed_over_attempts(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    await wrote(writer, await claimed(store, job_id), "a", "b")
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, "c")
    usage = Usage.model_validate({"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13, "cached": 4})
    await job_writer.finish(finished(claim, usage=usage))
    before = await store.queries.get(job_id)
    await store.seals.seal(ending(job_id), run_id="run-1")
    after = await store.queries.get(job_id)
    # Of the lost attempt, its text and (in the word "Hello", and a message around it) its prompt are estimated.
    expected = {"prompt_tokens": 10 + 6, "completion_tokens": 3 + 2, "total_tokens": 13 + 8, "cached": 4}
    assert after.usage is not None
    assert after.usage.model_dump() == expected
    assert after.usage_estimated
    assert before.usage == after.usage
    assert [attempt.outcome for attempt in after.attempts] == ["lost", "finished"]


async def test_a_late_report_of_an_attempt_says_that_it_was_not_lost(store: JobStore) -> None:
    """Its own line of the ledger is put right, and nothing else; of a job that has ended, nothing is."""
    job_id = await accepted(store)
    old = await claimed(store, job_id)
    new = await claimed(store, job_id)
    await store.attempts.end(job_id, old.attempt, old.fence, AttemptEnd("upstream_cut"))
    assert [attempt.outcome for attempt in (await store.queries.get(job_id)).attempts] == ["upstream_cut", None]
    last = await claimed(store, job_id)
    await store.seals.seal(failing(job_id), run_id="run-1")
    for late in (old, new, last):
        await store.attempts.end(job_id, late.attempt, late.fence, AttemptEnd("late"))
    assert [attempt.outcome for attempt in (await store.queries.get(job_id)).attempts] == [
        "upstream_cut",
        "lost",
        "upstream_cut",
    ]


async def test_an_attempt_after_a_restart_counts_its_own_tokens(store: JobStore, writer: TranscriptWriter) -> None:
    job_id = await accepted(store)
    await wrote(writer, await claimed(store, job_id), "a", "b", "c")
    claim = await claimed(store, job_id)
    job_writer = writer.open(claim)
    job_writer.restarted(await store.attempts.restart(job_id, fence=claim.fence, reason="restart"))
    await _append(job_writer, "d")
    await store.seals.seal(failing(job_id), run_id="run-1")
    assert [a.usage and a.usage.completion_tokens for a in (await store.queries.get(job_id)).attempts] == [3, 1]


async def test_what_is_known_of_a_call_is_not_estimated(store: JobStore, writer: TranscriptWriter) -> None:
    """Neither what Mistral counted nor what it refused; of a call that was lost early, nothing is known."""
    job_id, usage = await accepted(store), Usage(prompt_tokens=7, completion_tokens=2, total_tokens=9)
    for end in (
        AttemptEnd("upstream_unavailable", 503),
        AttemptEnd(AttemptOutcome.SEGMENT, 200, usage=usage),
        AttemptEnd("lost"),
    ):
        claim = await claimed(store, job_id)
        await store.attempts.end(job_id, claim.attempt, claim.fence, end)
    assert [(a.estimated, a.usage and a.usage.total_tokens) for a in (await store.queries.get(job_id)).attempts] == [
        (False, 0),
        (False, 9),
        (True, 0),
    ]
    assert (await claimed(store, job_id)).past.total_tokens == 9


async def test_a_claim_tells_what_the_ledger_says_of_the_text(store: JobStore, writer: TranscriptWriter) -> None:
    """Segments, and the tokens of the one that was interrupted; of this epoch alone."""
    job_id = await accepted(store)

    async def past(outcome: str, *deltas: str, restart: bool = False) -> tuple[int, int]:
        """Of the attempt after one with this outcome."""
        claim = await claimed(store, job_id)
        job_writer = writer.open(claim)
        if restart:
            job_writer.restarted(await store.attempts.restart(job_id, fence=claim.fence, reason="restart"))
        for delta in deltas:
            job_writer.append(Channel.CONTENT, delta)
        await job_writer.flush()
        await store.attempts.end(job_id, claim.attempt, claim.fence, AttemptEnd(outcome))
        found = (await claimed(store, job_id)).past
        return found.segments, found.segment_tokens

    assert await past("upstream_cut", "a", "b") == (0, 2)
    assert await past(AttemptOutcome.SEGMENT, "c") == (1, 0)
    assert await past("upstream_unavailable") == (1, 0)
    assert await past("upstream_cut", "d", "e") == (1, 2)
    assert await past(AttemptOutcome.SEGMENT, "f") == (2, 0)
    assert await past("upstream_cut", "g", "h", "i", restart=True) == (0, 3)
    assert await past(AttemptOutcome.SEGMENT, "j") == (1, 0)


async def test_a_claim_counts_empty_answers_apart(store: JobStore) -> None:
    job_id = await accepted(store)
    for outcome in ("upstream_empty", "upstream_cut", "continuation_refused", "upstream_empty"):
        claim = await claimed(store, job_id)
        await store.attempts.end(job_id, claim.attempt, claim.fence, AttemptEnd(outcome))
    found = (await claimed(store, job_id)).past
    assert (found.failures, found.empties) == (3, 2)


async def test_the_text_so_far_is_its_attempts_own(store: JobStore, writer: TranscriptWriter) -> None:
    """Read under the fence: whoever lost the job gets no text to go on from."""
    job_id = await accepted(store)
    old = await claimed(store, job_id)
    await wrote(writer, old, "x" * 300, "y")
    new = await claimed(store, job_id)
    pieces = await store.attempts.written(job_id, fence=new.fence, epoch=new.epoch)
    assert ("".join(piece.text for piece in pieces), pieces[-1].token_count) == ("x" * 300 + "y", 2)
    with pytest.raises(FenceLost):
        await store.attempts.written(job_id, fence=old.fence, epoch=old.epoch)


async def test_a_claim_counts_failures_at_the_place_of_the_answer(store: JobStore, writer: TranscriptWriter) -> None:
    """New text begins another place, unless it stands for text that was thrown away."""
    job_id = await accepted(store)

    async def here(outcome: str, *deltas: str, restart: bool = False) -> tuple[int, int]:
        claim = await claimed(store, job_id)
        job_writer = writer.open(claim)
        if restart:
            job_writer.restarted(await store.attempts.restart(job_id, fence=claim.fence, reason="restart"))
        for delta in deltas:
            job_writer.append(Channel.CONTENT, delta)
        await job_writer.flush()
        await store.attempts.end(job_id, claim.attempt, claim.fence, AttemptEnd(outcome, first_token_ms=1))
        probe = await claimed(store, job_id)
        await store.attempts.end(job_id, probe.attempt, probe.fence, AttemptEnd("handed_over"))
        found = probe.past
        return found.here, found.breaks

    assert await here("upstream_unavailable") == (1, 0)
    assert await here("upstream_cut", "a", "b") == (1, 1)
    assert await here("upstream_cut") == (2, 2)
    assert await here("stall_timeout", "c") == (1, 1)
    assert await here("internal", "d") == (2, 1)
    assert await here("upstream_cut", "e", "f", "g", "h", "i", restart=True) == (3, 2)


async def test_workers_that_die_with_a_job_are_counted_since_its_last_new_text(
    store: JobStore, writer: TranscriptWriter
) -> None:
    """Too many, and the job is nobody's any more; an attempt that turns out to live is not one of them."""
    job_id = await accepted(store, limits={"maxLost": 2})
    await wrote(writer, await claimed(store, job_id), "a")
    for _ in range(2):
        dying = await claimed(store, job_id)
        assert dying.outcome == "taken"
    assert (await claimed(store, job_id)).outcome == "worker_lost"
    reset = await claimed(store, job_id, tries=1)  # after an operator's Reset
    assert reset.outcome == "taken"
    await store.attempts.end(job_id, reset.attempt, reset.fence, AttemptEnd("handed_over"))
    await store.attempts.end(job_id, dying.attempt, dying.fence, AttemptEnd(AttemptOutcome.TAKEN_OVER))
    assert (await claimed(store, job_id)).outcome == "taken"
    assert (await claimed(store, job_id)).outcome == "worker_lost"


async def test_a_frozen_worker_is_neither_a_failure_nor_a_death(store: JobStore, database: Database) -> None:
    """Whether it says so in time, or after others had taken it for dead. Processes of an earlier version, to which the
    outcome is a failure like any, see that it is excused."""
    job_id = await accepted(store, limits={"maxLost": 2})
    for _ in range(3):
        claim = await claimed(store, job_id)
        await store.attempts.end(job_id, claim.attempt, claim.fence, AttemptEnd(AttemptOutcome.FROZEN))
    late = await claimed(store, job_id)
    heir = await claimed(store, job_id)
    await store.attempts.end(job_id, late.attempt, late.fence, AttemptEnd(AttemptOutcome.FROZEN))
    await store.attempts.end(job_id, heir.attempt, heir.fence, AttemptEnd("handed_over"))
    last = await claimed(store, job_id)
    assert (last.outcome, last.past.failures, last.past.here) == ("taken", 0, 0)
    async with database.read() as connection:
        ledger = await connection.execute(select(attempts.c.outcome, attempts.c.excused).order_by(attempts.c.number))
        assert ledger.all() == [(AttemptOutcome.FROZEN, True)] * 4 + [("handed_over", False), (None, False)]


async def test_a_claim_tells_what_each_attempt_wrote(store: JobStore, writer: TranscriptWriter) -> None:
    """Counted by the server, or estimated by the attempt, unless its worker died; in this segment, or one before."""
    job_id = await accepted(store)

    async def wrote_and_ended(outcome: str | None, usage: int | None = None, tokens: int | None = None) -> None:
        claim = await claimed(store, job_id)
        await wrote(writer, claim, "ab", "c")
        counted = None if usage is None else Usage(prompt_tokens=9, completion_tokens=usage, total_tokens=9 + usage)
        if outcome:
            end = AttemptEnd(outcome, 200, usage=counted, tokens=tokens)
            await store.attempts.end(job_id, claim.attempt, claim.fence, end)

    await wrote_and_ended(AttemptOutcome.SEGMENT, usage=8)
    await wrote_and_ended("upstream_cut", tokens=5)
    await wrote_and_ended(None)
    await wrote_and_ended("upstream_cut", usage=3)
    await wrote_and_ended(AttemptOutcome.TOPPED_UP, usage=7)
    past = (await claimed(store, job_id)).past
    assert past.stretches == (
        Stretch(0, 3, 2, tokens=8, closed=True),
        Stretch(3, 6, 2, most=5),
        Stretch(6, 9, 2),
        Stretch(9, 12, 2, tokens=2),
        Stretch(12, 15, 2, tokens=7),
    )
    assert (past.segments, past.segment_tokens, past.topped_up, past.failures) == (1, 8, True, 2)


async def test_calls_that_were_counted_are_samples(store: JobStore, writer: TranscriptWriter) -> None:
    """Of the same model, with all the text of the job, newest first; not estimates, not the rests of answers."""

    async def ended(*deltas: str, estimated: bool = False, cut: bool = False, **fields: Any) -> None:
        job_id = await accepted(store, **fields)
        if cut:
            await wrote(writer, await claimed(store, job_id), "x")
        claim = await claimed(store, job_id)
        job_writer = await wrote(writer, claim, *deltas)
        usage = Usage(prompt_tokens=4, completion_tokens=3 * len(deltas), total_tokens=4 + 3 * len(deltas))
        await job_writer.finish(finished(claim, usage=usage, estimated=estimated, first_token_ms=5))
        await store.seals.seal(ending(job_id, position=job_writer.position), run_id="run-1")

    await ended("a b c", "d e f")
    await ended("other", model="another-model")
    await ended("guessed", estimated=True)
    await ended("rest", cut=True)
    await ended("g h i")
    assert await store.attempts.samples("mistral-small-latest") == [Sample(3, 1, "g h i"), Sample(6, 2, "a b cd e f")]
