"""What a reader at a cursor lacks, from the rows of one query. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from chatjobs.contracts import Channel, JobStatus
from chatjobs.errors import ContentDeleted, JobNotFound
from domain.values import Cursor, Slice, TextRun
from storage.engine.schema import CHANNELS
from storage.jobs.mapping import compacted_runs

COLUMNS: Final = """j.epoch, j.position, j.token_count, j.tail, j.tail_channel, j.status, j.attempt, j.reset_reason,
  j.started_at, j.deleted_at, r.content, r.reasoning, r.runs, c.position, c.channel, c.text, c.token_count"""
"""Of a job (j), its result (r) and its transcript (c); in this order they make a slice."""
TEXT: Final = 13
"""Where the columns of the transcript begin; those before it are the same in all rows of a job."""
STATUSES: Final = {status.value: status for status in JobStatus}


def slice_of(cursor: Cursor, rows: Sequence[Sequence[Any]]) -> Slice:
    """The slice in a job's rows, which are ordered by the position of their text.

    Raises JobNotFound, and ContentDeleted: a slice without its text would look like the end of the answer.
    """
    epoch, position, token_count, tail, tail_channel, status, attempt, reset_reason, started_at, deleted_at = rows[0][
        :10
    ]
    if epoch is None:
        raise JobNotFound
    if deleted_at is not None:
        raise ContentDeleted
    content, reasoning, compacted = rows[0][10:TEXT]
    if compacted is not None:
        runs = compacted_runs({Channel.CONTENT: content, Channel.REASONING: reasoning}, compacted)
    else:
        stored = (row[TEXT:] for row in rows if row[TEXT] is not None)
        runs = [TextRun(end, CHANNELS[channel], text, count) for end, channel, text, count in stored]
        runs.append(TextRun(position, CHANNELS[tail_channel], tail, token_count))
    known = cursor.epoch == epoch and cursor.position <= position
    return Slice(
        job_id=cursor.job_id,
        epoch=epoch,
        position=position,
        runs=_after(cursor.position if known else 0, runs),
        reset=not known and (cursor.epoch, cursor.position) != (1, 0),
        status=STATUSES[status],
        attempt=attempt,
        reset_reason=reset_reason,
        started=started_at is not None or position > 0,  # a resumed job has text before its next attempt
    )


def _after(start: int, runs: Sequence[TextRun]) -> tuple[TextRun, ...]:
    """The text from a position on, one run per change of channel. The position may lie within a run."""
    lacking: list[TextRun] = []
    for _, group in groupby((run for run in runs if run.position > start and run.text), attrgetter("channel")):
        neighbours = list(group)
        last = neighbours[-1]
        text = last.text if len(neighbours) == 1 else "".join(run.text for run in neighbours)
        lacking.append(last._replace(text=text[-(last.position - start) :]))
    return tuple(lacking)
