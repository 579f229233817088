"""The upload of a batch: its lines are checked and stored as they arrive, and it begins when the last one is there."""

from __future__ import annotations

import asyncio
import logging
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from chatjobs.contracts import BatchSettings
from chatjobs.errors import ChatJobsError, InvalidRequest, Problem, bounded
from domain.batches import MOST_PROBLEMS, BatchHandle, BatchHash, NewBatch, NewItem, check_settings, new_item
from domain.names import new_batch_id
from domain.webhook_urls import WebhookPolicy
from gateway.problems import HttpProblem
from gateway.serving.bodies import NOT_JSON, decoded
from storage.batches.drafts import DraftStore

log = logging.getLogger(__name__)

Translate = Callable[[Any], Any]
"""Makes the JSON of an item, as ``POST /api/batches`` takes it, of that of a line. Raises InvalidRequest."""


class Line(NamedTuple):
    """An item as it came: a line of JSON with its number from 1, or decoded JSON with its index from 0."""

    place: int
    content: bytes | Any

    @property
    def is_text(self) -> bool:
        return isinstance(self.content, bytes)


class _Checked(NamedTuple):
    items: list[tuple[Line, NewItem]]
    problems: list[Problem]


class Upload:
    """One upload. Nothing of it stays if it is refused or breaks off."""

    def __init__(
        self,
        drafts: DraftStore,
        policy: WebhookPolicy,
        tenant: str,
        settings: BatchSettings,
        key: str | None,
        *,
        batch_id: str | None = None,
        translate: Translate | None = None,
    ) -> None:
        """``batch_id``: None is a new one. ``translate``: makes an item of the JSON of a line, if it is not one."""
        self._drafts = drafts
        self._tenant = tenant
        self._policy = policy
        self._settings = check_settings(settings, self._policy)
        self._as_given = settings
        self._key = key
        self._id = batch_id or new_batch_id()
        self._translate = translate or _as_it_is
        self._hash = BatchHash()
        self._shifts: list[tuple[int, int]] = []
        """Where the places of items begin to be further from their numbers: after blank lines."""
        self._total = 0
        self._known = False
        """The key is that of a batch: the items are only hashed, and not stored a second time."""

    async def accept(self, groups: AsyncIterator[Sequence[Line]]) -> BatchHandle:
        """Check and store the items, and make them a batch. Raises HttpProblem, IdempotencyMismatch, StorageError."""
        self._known = self._key is not None and await self._drafts.by_key(self._tenant, self._key)
        if not self._known:
            await self._drafts.begin(self._id, self._tenant)
        try:
            await self._store(groups)
            batch = NewBatch(
                batch_id=self._id,
                tenant=self._tenant,
                settings=self._settings,
                total=self._total,
                body_hash=self._hash.digest(self._as_given),
                idempotency_key=self._key,
            )
            found = await self._drafts.existing(batch) if self._known else await self._drafts.publish(batch)
        except BaseException:
            await self._discard()
            raise
        if found is None:  # it was removed meanwhile
            raise HttpProblem(503, "storage_unavailable", "Send the upload again", headers={"Retry-After": "1"})
        if not found.created:
            await self._discard()
        return found

    async def _store(self, groups: AsyncIterator[Sequence[Line]]) -> None:
        problems: list[Problem] = []
        async for group in groups:
            if self._known:
                problems += await asyncio.to_thread(self._hash_only, group)
                continue
            checked = await asyncio.to_thread(self._check, group, self._total)
            problems += checked.problems
            problems += await self._doubles(checked)
            if len(problems) >= MOST_PROBLEMS:
                break
            self._total += len(group)
            if not problems:
                await self._drafts.add(self._id, [item for _, item in checked.items])
        if not problems and not self._total and not self._known:
            problems = [Problem("/items", "must have at least one item")]
        if problems:
            why = f"The batch is not valid, and nothing was started: {problems[0].message}"
            raise HttpProblem(422, "validation_failed", bounded(why), errors=problems[:MOST_PROBLEMS])

    def _hash_only(self, group: Sequence[Line]) -> list[Problem]:
        problems = []
        for line in group:
            try:
                self._hash.add(_value(line))
            except HttpProblem as error:
                problems.append(_problem(line, "", _why_undecoded(error)))
        return problems[:MOST_PROBLEMS]

    def _check(self, group: Sequence[Line], first: int) -> _Checked:
        """Runs in a thread: a line takes some hundred microseconds."""
        checked = _Checked([], [])
        for number, line in enumerate(group, first):
            self._note_place(number, line.place)
            try:
                value = _value(line)
                body_hash = self._hash.add(value)
                value = self._translate(value)
                item = new_item(value, number, self._id, self._settings, body_hash, self._policy)
            except InvalidRequest as error:
                checked.problems.extend(_problem(line, *one) for one in error.problems)
            except ChatJobsError as error:  # a webhook's URL that is refused
                checked.problems.append(_problem(line, "/body", error.message))
            except HttpProblem as error:
                checked.problems.append(_problem(line, "", _why_undecoded(error)))
            else:
                checked.items.append((line, item))
            if len(checked.problems) >= MOST_PROBLEMS:
                break
        return checked

    def _note_place(self, number: int, place: int) -> None:
        if not self._shifts or self._shifts[-1][1] != place - number:
            self._shifts.append((number, place - number))

    def _place_of(self, number: int) -> int:
        """The place of an item that was noted before."""
        return number + self._shifts[bisect_right(self._shifts, (number, sys.maxsize)) - 1][1]

    async def _doubles(self, checked: _Checked) -> list[Problem]:
        """The items whose ``custom_id`` another one has."""
        if not checked.items:
            return []
        problems = []
        names = [item.custom_id for _, item in checked.items]
        numbers = await self._drafts.same_names(self._id, names)
        first = {name: self._place_of(number) for name, number in numbers.items()}
        for line, item in checked.items:
            before = first.setdefault(item.custom_id, line.place)
            if before != line.place:
                other = f"line {before}" if line.is_text else f"items/{before}"
                problems.append(_problem(line, "/custom_id", f"is that of {other}, too; each item needs its own"))
        return problems

    async def _discard(self) -> None:
        """Delete the draft; if the database is away, a sweeper does it later."""
        if self._known:
            return
        try:
            await self._drafts.discard(self._id)
        except ChatJobsError as error:
            log.warning("draft not deleted: %s", error, extra={"action": "draft_left", "batch_id": self._id})


def _as_it_is(value: Any) -> Any:
    return value


def _problem(line: Line, pointer: str, message: str) -> Problem:
    """A problem of a line, which is named in both of its parts: few files are looked at by a program."""
    if line.is_text:
        words = f"line {line.place}: {pointer} {message}" if pointer else f"line {line.place}: {message}"
        return Problem(f"/lines/{line.place}{pointer}", words)
    return Problem(f"/items/{line.place}{pointer}", message)


def _why_undecoded(error: HttpProblem) -> str:
    """Why a line could not be decoded. Its line number 1 is left out: it is within the line."""
    return error.detail.replace(f"{NOT_JSON}: line 1, ", "is not JSON (RFC 8259) in UTF-8: ")


def _value(line: Line) -> Any:
    """The decoded JSON of a line. Raises HttpProblem."""
    return decoded(line.content) if isinstance(line.content, bytes) else line.content
