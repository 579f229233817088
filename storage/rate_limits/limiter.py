"""Lanes: the requests that share one of the model's rate limits, over all workers.

A lane is a GCRA (generic cell rate algorithm) without bursts: its row holds the time from which the next call may
start, and every start moves it on by one interval. A job that has to wait longer than HORIZON_SECONDS goes back to
Temporal; its place is kept (lane_queue.py), and it is woken in time for its turn (activities/waker.py). Temporal's own
task-queue limit is an average and lets 16 calls start in the worst second at a limit of 10; here no second has 11.

Turns are granted in order, at most BOOKED_SECONDS ahead. A call that starts after its turn is reported
(``report_late_start``) and moves the later turns, so that calls keep their distance without a large slack per interval.

Besides its pace, a lane may have a limit of calls at once (running.py) and a budget of tokens per minute (budget.py);
pauses.py has what lets no call start.
"""

from __future__ import annotations

import time as clocks
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from sqlalchemy import Row, bindparam, exists, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Lane, QueuePlace, QueueReason
from domain.timings import Timings
from domain.values import Claimant, Reservation
from storage.engine.database import Database, retried
from storage.engine.group_commit import Group
from storage.engine.schema import lane_waiters, lanes, moment
from storage.rate_limits import breaker, lane_queue, overview, pauses
from storage.rate_limits.breaker import LONGEST_ASKED_SECONDS, SECOND
from storage.rate_limits.budget import SLOT, TokenBudget, learned
from storage.rate_limits.lane_queue import RANKED, RANKED_HELD, LaneQueue
from storage.rate_limits.running import WorkerLease, count_running

SLACK = 0.025
"""The interval is longer than the limit requires by this share: the way of calls to the model may then vary by 22 ms
without a second that has a call too many."""
LATE_SECONDS = 0.003
"""A start that is later than this after its turn moves the later turns."""
FAST_PER_SECOND = 200
"""Late starts in a lane with this limit or a higher one are not reported: each report costs a transaction."""
MOST_LATE_SECONDS = 0.3
"""A job that would start later than this after its turn gives the turn up and requests another one."""
BOOKED_SECONDS = 0.25
"""Turns are granted this long ahead: longer than a transaction takes, and the most that a later job waits for them."""
ASKS_EARLY_SECONDS = 0.2
"""How long before its turn a job that waits in a worker requests it."""
HORIZON_SECONDS = 1.0
"""A job that may start within this time waits in the worker; the others go back to Temporal."""
EARLY_SECONDS = 0.6
"""How long before its turn a job is woken."""
LONGEST_FAR_SECONDS = 300.0
"""A job that no worker wakes requests its turn at least this often: the wake-up may have been lost."""
OVERTAKING_SECONDS = 0.125
"""A job may start before others that are ahead of it by no more than this, so that a lane is not idle until the first
job of the queue requests its turn."""
SHORTEST_WAIT_SECONDS = 0.05
PLACE_LOOK_SECONDS = 0.2
"""How often a job that stays in its worker looks whether a call has ended and left its place."""
DOWN_WAIT_SECONDS = 1.0
"""The shortest pause between two requests of a job while the model is down."""
PUNCTUAL_SECONDS = 0.25
"""A job that requests its turn by itself within this time is not woken."""
MOST_WOKEN = 200
"""Jobs of a lane that are woken at once."""
MOST_OVERDUE = 50
"""While more woken jobs than this are overdue, all workers are busy, and no other job is woken."""
SLOWEST, FASTEST = 0.001, 10_000
"""Calls per second that an operator may set."""
MOST_AT_ONCE = 100_000
MOST_TOKENS = 10_000_000_000
COLUMNS = {"per_second": "set_to", "at_once": "at_once", "tokens_per_minute": "tokens_set_to"}
"""The columns of the limits that operators set."""
ASKED_AT_ONCE = 500
"""Jobs in one query for places: SQLite takes some ten thousand values."""

# Built once: making a statement costs as much as running it, and these run for every call.
SELECT_LANE = select(lanes).where(lanes.c.name == bindparam("key"))
SELECT_LANE_LOCKED = SELECT_LANE.with_for_update()
SELECT_FAILING = select(lanes.c.name).where(
    lanes.c.name.in_(bindparam("keys", expanding=True)), or_(lanes.c.failures > 0, lanes.c.openings > 0)
)
SELECT_LANES_OF_JOBS = select(lanes).where(
    lanes.c.name.in_(select(lane_waiters.c.lane).where(lane_waiters.c.job_id.in_(bindparam("job_ids", expanding=True))))
)
SELECT_LANES_WITH_WAITERS = select(lanes).where(exists().where(lane_waiters.c.lane == lanes.c.name))
SET_FREE_AT = update(lanes).where(lanes.c.name == bindparam("key")).values(free_at=bindparam("new_free_at"))
SET_FREE_AND_SPENT = SET_FREE_AT.values(token_spends=bindparam("new_spends"))

Reserve = Callable[[AsyncConnection, str, Claimant], Awaitable[Reservation]]
"""Reserves a call of a model (its name) in the transaction that claims the job."""


class Limiter:
    """Reserves the starts of calls. ``per_second`` is the limit of lanes without one of their own."""

    def __init__(self, database: Database, *, per_second: float, timings: Timings = Timings()) -> None:
        self._database = database
        self.per_second = per_second
        self._timings = timings
        self._lost_after = int(timings.lost_waiter_seconds * SECOND)
        self._failing: Group[str, bool] = Group(self._look_at_failures)
        self.lease = WorkerLease(database, timings=timings)
        """Of this process's calls; ``WorkerLease.run`` must run where there are any."""

    @retried
    async def reserve(self, name: str, claimant: Claimant) -> Reservation:
        """Reserve the lane's next start, or else a place in its queue."""
        async with self._database.write("fast") as connection:
            return await self.reserve_in(connection, name, claimant)

    def reserver(self, lane_of: Callable[[str], str], *, queueing: bool = True) -> Reserve:
        """The ``reserve`` of AttemptStore.claim; ``lane_of`` gives the lane of a model. Without ``queueing``, a job
        that would have to wait does not enter the queue, but for one that may try a model again that was down."""

        async def reserve(connection: AsyncConnection, model: str, claimant: Claimant) -> Reservation:
            return await self.reserve_in(connection, lane_of(model), claimant, queueing=queueing)

        return reserve

    async def reserve_in(
        self, connection: AsyncConnection, name: str, claimant: Claimant, *, queueing: bool = True
    ) -> Reservation:
        """``reserve``, in the caller's transaction."""
        lane, time = await self._locked(connection, name)
        turn = await self._reserve(connection, lane, time, claimant, queueing=queueing)
        if turn.granted or turn.held:
            return turn
        return replace(turn, down=breaker.is_open(lane), refused_seconds=_paused_seconds(lane, time))

    async def _reserve(
        self, connection: AsyncConnection, lane: Row[Any], time: int, claimant: Claimant, *, queueing: bool
    ) -> Reservation:
        name, clock = lane.name, clocks.monotonic()
        interval = self._interval(lane)
        free = _free(lane, time, interval)
        down = breaker.is_open(lane)
        soon = free <= time + int(BOOKED_SECONDS * SECOND)
        queue = self._queue(connection, name, time)
        held, waiters = await queue.look(claimant.tenant)
        if held:
            waiting = Reservation(False, HORIZON_SECONDS, lane=name, held=True)
            return await self._hold(queue, claimant) if queueing else waiting
        places, budget = await self._places(connection, lane, time, claimant.job_id), TokenBudget.of(lane, time)
        cost = budget.cost(claimant) if budget else 0
        if budget and soon:
            soon = budget.free_at(cost) <= time + int(BOOKED_SECONDS * SECOND)
        if soon and not down and places != 0 and not waiters:
            if free > time:
                await queue.start_without_waiting(claimant)
            return await self._grant(connection, lane, time, clock, {"free_at": free + interval}, cost=cost)
        probe = down and breaker.may_probe(lane, time, claimant.job_id, others=await queue.has_others(claimant.job_id))
        if not queueing and not probe:
            return Reservation(False, HORIZON_SECONDS, lane=name)
        entry = await queue.enter(claimant, cost)
        ahead, tokens_ahead = (0, 0) if places is None and budget is None else await queue.punctual_ahead(entry)
        if places is not None and ahead >= places:
            return await self._wait_for_place(queue, entry, stays=claimant.stays)
        if budget:
            free = max(free, budget.free_at(cost, tokens_ahead))
            soon = free <= time + int(BOOKED_SECONDS * SECOND)
        near_ahead = 0 if down else await queue.count_near_ahead(entry)
        in_order = near_ahead * interval <= int(OVERTAKING_SECONDS * SECOND)
        if soon and (probe if down else in_order):
            await queue.dequeue(entry)
            changes = {"free_at": free + interval} | (breaker.probe_changes(time, claimant.job_id) if probe else {})
            return await self._grant(connection, lane, time, clock, changes, probe=probe, cost=cost)
        return await self._wait(queue, entry, lane, (free, interval), near_ahead, stays=claimant.stays)

    async def _grant(
        self,
        connection: AsyncConnection,
        lane: Row[Any],
        time: int,
        clock: float,
        changes: dict[str, Any],
        *,
        probe: bool = False,
        cost: int = 0,
    ) -> Reservation:
        """Grant the lane's next start. ``clock`` is the monotonic clock's reading at ``time``; ``cost``: the tokens to
        reserve in the lane's budget, if it has one."""
        if lane.at_once is not None:
            await self.lease.ensure(connection, time)
        seconds = (changes["free_at"] - self._interval(lane) - time) / SECOND
        budget = TokenBudget.of(lane, time)
        if probe:
            spends = {"token_spends": budget.reserved(cost)} if budget else {}
            await connection.execute(update(lanes).where(lanes.c.name == lane.name).values(changes | spends))
        elif budget:
            spent = {"new_free_at": changes["free_at"], "new_spends": budget.reserved(cost)}
            await connection.execute(SET_FREE_AND_SPENT, {"key": lane.name, **spent})
        else:
            await connection.execute(SET_FREE_AT, {"key": lane.name, "new_free_at": changes["free_at"]})
        return Reservation(
            granted=True,
            tokens=cost,
            slot=time // SLOT,
            budget=budget.limit if budget else None,
            used=budget.used + cost if budget else 0,
            seconds=seconds,
            lane=lane.name,
            due=clock + seconds,
            shifted=lane.shifted if self._per_second(lane) < FAST_PER_SECOND else None,
            probe=probe,
            refused=lane.refusals > 0,
            seen=lane.seen,
            tokens_seen=lane.tokens_seen,
            counts=lane.at_once is not None,
            worker=self.lease.id,
        )

    async def _wait(
        self,
        queue: LaneQueue,
        entry: lane_queue.QueueEntry,
        lane: Row[Any],
        pace: tuple[int, int],
        near_ahead: int,
        *,
        stays: bool,
    ) -> Reservation:
        """A waiting job's reservation: in the worker if its turn is near, else in Temporal until shortly before. A job
        that stays in its worker asks again within HORIZON_SECONDS, as nobody wakes it."""
        (free, interval), time = pace, queue.time
        ahead = await queue.count_ahead(entry)
        down = breaker.is_open(lane)
        if down:
            free = max(free, breaker.expected_start(lane, time))
        seconds = (free + ahead * interval - time) / SECOND
        near = seconds <= HORIZON_SECONDS and not down
        if near:
            in_line = (free + near_ahead * interval - time) / SECOND
            pause = max(in_line - ASKS_EARLY_SECONDS, SHORTEST_WAIT_SECONDS)
        else:
            pause = max(
                min(seconds, LONGEST_FAR_SECONDS) - EARLY_SECONDS,
                DOWN_WAIT_SECONDS if down else HORIZON_SECONDS - EARLY_SECONDS,
            )
        if stays:
            near, pause = not down, min(pause, HORIZON_SECONDS)
        await queue.set_next_request(entry, time + int(pause * SECOND), near=near)
        return Reservation(False, pause, ahead + 1, lane=lane.name, near=near)

    async def _places(self, connection: AsyncConnection, lane: Row[Any], time: int, job_id: str = "") -> int | None:
        """The number of calls that may begin besides those that run; None: any number. ``job_id``: the job that asks,
        whose own attempt does not count."""
        if lane.at_once is None:
            return None
        return max(0, int(lane.at_once) - await count_running(connection, lane.name, time, besides=job_id))

    async def _wait_for_place(self, queue: LaneQueue, entry: lane_queue.QueueEntry, *, stays: bool) -> Reservation:
        """A waiting job's reservation while all places are taken, or will be by others before it: it goes back to
        Temporal until it is woken for a place of its own."""
        pause = PLACE_LOOK_SECONDS if stays else LONGEST_FAR_SECONDS
        await queue.set_next_request(entry, queue.time + int(pause * SECOND), near=stays)
        return Reservation(False, pause, await queue.count_ahead(entry) + 1, lane=queue.lane, near=stays)

    async def _hold(self, queue: LaneQueue, claimant: Claimant) -> Reservation:
        """A paused job's reservation: it goes back to Temporal until it is woken, and keeps its place."""
        entry = await queue.enter(claimant)
        pause = HORIZON_SECONDS if claimant.stays else LONGEST_FAR_SECONDS
        await queue.set_next_request(entry, queue.time + int(pause * SECOND), near=False, held=True)
        return Reservation(False, pause, await queue.count_ahead(entry) + 1, lane=queue.lane, held=True)

    async def still_holds(self, turn: Reservation, claimant: Claimant) -> bool:
        """Whether a granted turn is still valid: nothing was paused since that concerns it, and the model is not
        down."""
        async with self._database.single() as connection:
            lane = (await connection.execute(SELECT_LANE, {"key": turn.lane})).first()
            time = await self._database.time(connection)
            held = await pauses.holds(connection, turn.lane, claimant.tenant)
        if lane is None or held:
            return not held
        paused = time < lane.paused_until <= time + int(LONGEST_ASKED_SECONDS * SECOND)
        probes = lane.probe == claimant.job_id and lane.probe_until > time
        return not paused and (not breaker.is_open(lane) or probes)

    @retried
    async def settle(self, turn: Reservation, prompt: int, answer: int, *, whole: bool = False) -> None:
        """Replace the tokens that were reserved for a call by those that it used; ``whole``: its answer came to its
        end, and the lane learns how long answers are."""
        async with self._database.write("fast") as connection:
            lane, time = await self._locked(connection, turn.lane)
            if (budget := TokenBudget.of(lane, time)) is None:
                return
            changes: dict[str, Any] = {"token_spends": budget.settled(turn, prompt, answer)}
            if whole:
                changes["typical_answer"] = learned(lane.typical_answer, answer)
            await connection.execute(update(lanes).where(lanes.c.name == turn.lane).values(changes))

    @retried
    async def report_late_start(self, turn: Reservation, seconds: float) -> None:
        """Record a call's delay behind its turn; it delays the calls that may start a second later as well."""
        async with self._database.write("fast") as connection:
            lane, _ = await self._locked(connection, turn.lane)
            shifted = (turn.shifted or 0) + int((seconds - LATE_SECONDS) * SECOND)
            if shifted > lane.shifted:
                changes = {"shifted": shifted, "free_at": lane.free_at + shifted - lane.shifted}
                await connection.execute(update(lanes).where(lanes.c.name == turn.lane).values(changes))

    @retried
    async def leave(self, job_id: str) -> None:
        """For tests: remove a job from its queue, as the seal does (lane_queue.leave)."""
        async with self._database.write("fast") as connection:
            await lane_queue.leave(connection, job_id)

    async def take_due(self) -> Sequence[str]:
        """Take the waiting jobs whose turn is near and whose own next request would come too late. Each is returned to
        one process only."""
        async with self._database.read() as connection:
            time = await self._database.time(connection)
            found = (await connection.execute(SELECT_LANES_WITH_WAITERS)).all()
            due = [lane.name for lane in found if await self._due(self._queue(connection, lane.name, time), lane)]
        taken: list[str] = []
        for name in due:
            taken += await self._take_due_of(name)
        return taken

    @retried
    async def _take_due_of(self, name: str) -> Sequence[str]:
        async with self._database.write("fast") as connection:
            lane, time = await self._locked(connection, name)
            queue = self._queue(connection, name, time)
            due = await self._due(queue, lane)
            await queue.mark_woken(due, time + int(PUNCTUAL_SECONDS * SECOND))
            await queue.delete_old_tags()
        return due

    async def _due(self, queue: LaneQueue, lane: Row[Any]) -> Sequence[str]:
        """The jobs of a lane that have to be woken now."""
        time, interval = queue.time, self._interval(lane)
        free, excluded = _free(lane, time, interval), None
        if breaker.is_open(lane):
            free = max(free, breaker.next_probe_at(lane, time))
            excluded = lane.probe if await queue.has_others(lane.probe or "") else None
        count = (time + int(EARLY_SECONDS * SECOND) - free) // interval + 1
        if count <= 0:
            return []
        count = 1 if breaker.is_open(lane) else min(count, MOST_WOKEN)
        places = await self._places(queue.connection, lane, time)
        count = count if places is None else min(count, places)
        if not count:
            return []
        if await queue.count_overdue() > max(MOST_OVERDUE, 2 * count):
            return []
        punctual = time + int(PUNCTUAL_SECONDS * SECOND)
        waiters = _affordable(TokenBudget.of(lane, time), await queue.next_waiters(count, excluding=excluded))
        return [row.job_id for row in waiters if not row.near and row.asks_at > punctual]

    @retried
    async def record_failure(
        self, name: str, job_id: str, attempt: int, message: str, retry_after: float = 0.0
    ) -> breaker.Outage | None:
        """Record a call that failed before the first token. Returns the outage, or None if the breaker is closed (see
        storage/rate_limits/breaker.py)."""
        async with self._database.write("fast") as connection:
            lane, time = await self._locked(connection, name)
            call = (job_id, attempt)
            return await breaker.record_failure(
                connection, lane, time, call, message, retry_after, timings=self._timings
            )

    async def record_answer(self, name: str, job_id: str) -> None:
        """Record that the model answered a call, even if it refused the request."""
        if await self._failing.add(name):
            await self._end_outage(name, job_id)

    async def _look_at_failures(self, names: Sequence[str]) -> Sequence[bool]:
        """Whether the last calls of these lanes failed: one read for all answers of a moment."""
        async with self._database.single() as connection:
            found = await connection.execute(SELECT_FAILING, {"keys": sorted(set(names))})
            failing = set(found.scalars())
        return [name in failing for name in names]

    @retried
    async def _end_outage(self, name: str, job_id: str) -> None:
        async with self._database.write("fast") as connection:
            lane, _ = await self._locked(connection, name)
            await breaker.record_answer(connection, lane, job_id)

    @retried
    async def release_probe(self, name: str, job_id: str) -> None:
        """Record a probe that ended without showing whether the model answers."""
        async with self._database.write("fast") as connection:
            lane, time = await self._locked(connection, name)
            await breaker.release_probe(connection, lane, time, job_id)

    @retried
    async def throttle(self, name: str, retry_after: float | None, job_id: str = "") -> float:
        """Pause the lane after the model refused a call for its rate. Returns the seconds of the pause:
        ``retry_after``, or if it is None a pause that grows with every refusal in a row.
        """
        async with self._database.write("fast") as connection:
            lane, time = await self._locked(connection, name)
            grown = self._timings.first_throttle_pause_seconds * 2 ** min(lane.refusals, 10)
            seconds = min(grown, self._timings.longest_throttle_pause_seconds) if retry_after is None else retry_after
            until = max(lane.paused_until, time + int(seconds * SECOND))
            if lane.failures or lane.openings:  # a model that refuses a call is up
                await breaker.record_answer(connection, lane, job_id)
            values = {"paused_until": until, "refusals": lane.refusals + 1}
            await connection.execute(update(lanes).where(lanes.c.name == name).values(values))
        return float(until - time) / SECOND

    @retried
    async def record_success(
        self,
        name: str,
        *,
        per_minute: float | None = None,
        pause: float | None = None,
        tokens_per_minute: float | None = None,
        tokens_left: float | None = None,
    ) -> None:
        """Record a call that the model accepted. ``per_minute`` is the limit in its headers; ``pause`` (seconds) pauses
        the lane, because its headers said that nothing is left. ``tokens_left``: where it is less than this lane knows
        of, others use the key, and their tokens are counted as well."""
        async with self._database.write("fast") as connection:
            lane, time = await self._locked(connection, name)
            changes: dict[str, Any] = {"refusals": 0}
            if per_minute is not None:
                changes["seen"] = per_minute / 60
            if tokens_per_minute:
                changes["tokens_seen"] = int(tokens_per_minute)
            budget = TokenBudget.of(lane, time)
            if budget and tokens_per_minute and tokens_left is not None:
                changes["token_spends"] = budget.told(tokens_per_minute - tokens_left)
            if pause is not None:
                changes["paused_until"] = max(lane.paused_until, time + int(pause * SECOND))
            await connection.execute(update(lanes).where(lanes.c.name == name).values(changes))

    async def set_limit(self, name: str, per_second: float | None) -> None:
        """Change a lane's rate for all workers from now on; None restores the setting's."""
        await self.set_limits(name, {"per_second": per_second})

    async def set_at_once(self, name: str, at_once: int | None) -> None:
        """Change the number of calls that may run at once in a lane; None: any number. Calls that run go on."""
        await self.set_limits(name, {"at_once": at_once})

    @retried
    async def set_limits(self, name: str, changes: Mapping[str, Any]) -> None:
        """Change several limits of a lane at once: ``per_second``, ``at_once``, ``tokens_per_minute``."""
        values = {COLUMNS[limit]: value for limit, value in changes.items()}
        if "per_second" in changes:
            values["seen"] = None
        if "tokens_per_minute" in changes:
            values["tokens_seen"] = None
        async with self._database.write() as connection:
            await self._locked(connection, name)
            await connection.execute(update(lanes).where(lanes.c.name == name).values(values))

    async def lanes(self, tenant: str | None = None) -> Sequence[Lane]:
        """All lanes by name; or those that a tenant's jobs use, with the counts of that tenant."""
        async with self._database.read() as connection:
            time = await self._database.time(connection)
            return await overview.describe(connection, time, self._per_second, tenant)

    async def queue_places(self, job_ids: Collection[str]) -> Mapping[str, QueuePlace]:
        """The places of the jobs that wait in a lane; the others are left out."""
        found: dict[str, QueuePlace] = {}
        async with self._database.read() as connection:
            for some in batched(job_ids, ASKED_AT_ONCE):
                found |= await self.places(connection, some)
        return found

    async def places(self, connection: AsyncConnection, job_ids: Sequence[str]) -> Mapping[str, QueuePlace]:
        """``queue_places``, in the caller's transaction, for up to ASKED_AT_ONCE jobs."""
        found: dict[str, QueuePlace] = {}
        for lane in (await connection.execute(SELECT_LANES_OF_JOBS, {"job_ids": job_ids})).all():
            time = await self._database.time(connection)
            free = _free(lane, time, self._interval(lane))
            if breaker.is_open(lane):
                free = max(free, breaker.expected_start(lane, time))
            lost = time - self._lost_after
            ranked = await connection.execute(RANKED, {"lane_name": lane.name, "job_ids": job_ids, "lost": lost})
            places, budget = await self._places(connection, lane, time), TokenBudget.of(lane, time)
            for job_id, place, tokens_ahead in ranked:
                if places is not None and place > places:
                    found[job_id] = QueuePlace(position=place, reason="at_once")
                    continue
                paid = budget.free_at(0, int(tokens_ahead or 0)) if budget else time
                start = moment(max(free + (place - 1) * self._interval(lane), paid))
                found[job_id] = QueuePlace(position=place, expected_start_at=start, reason=_reason(lane, time))
            held = await connection.execute(RANKED_HELD, {"lane_name": lane.name, "job_ids": job_ids})
            found |= {job_id: QueuePlace(position=place, reason="paused") for job_id, place in held}
        return found

    async def _locked(self, connection: AsyncConnection, name: str) -> tuple[Row[Any], int]:
        """The lane's locked row, and the time: the database's clock where several machines share one."""
        row = (await connection.execute(SELECT_LANE_LOCKED, {"key": name})).first()
        if row is None:
            dialect = sqlite if self._database.is_sqlite else postgresql
            fresh = {"name": name, "free_at": 0, "paused_until": 0, "refusals": 0}
            await connection.execute(dialect.insert(lanes).values(fresh).on_conflict_do_nothing())
            row = (await connection.execute(SELECT_LANE_LOCKED, {"key": name})).one()
        return row, await self._database.time(connection)

    def _queue(self, connection: AsyncConnection, name: str, time: int) -> LaneQueue:
        dialect = "sqlite" if self._database.is_sqlite else "postgresql"
        return LaneQueue(connection, dialect, name, time, time - self._lost_after)

    def _per_second(self, lane: Row[Any]) -> float:
        limit = self.per_second if lane.set_to is None else lane.set_to
        return min(limit, lane.seen) if lane.seen else limit

    def _interval(self, lane: Row[Any]) -> int:
        return int((1 + SLACK) / self._per_second(lane) * SECOND)


def _free(lane: Row[Any], time: int, interval: int) -> int:
    """When a lane is free. A time further ahead than any that is ever written is ignored: the clock was set back."""
    latest_start = time + int(HORIZON_SECONDS * SECOND) + interval
    longest_pause = time + int(LONGEST_ASKED_SECONDS * SECOND)
    free_at = lane.free_at if lane.free_at <= latest_start else time
    paused_until = lane.paused_until if lane.paused_until <= longest_pause else time
    return max(time, free_at, paused_until)


def _paused_seconds(lane: Row[Any], time: int) -> float:
    """For how long the model's server has asked not to be called."""
    ahead = lane.paused_until - time
    return ahead / SECOND if 0 < ahead <= int(LONGEST_ASKED_SECONDS * SECOND) else 0.0


def _affordable(budget: TokenBudget | None, waiters: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """The waiters, in order, that the budget has tokens for within EARLY_SECONDS."""
    if budget is None:
        return waiters
    found, ahead, soon = [], 0, budget.time + int(EARLY_SECONDS * SECOND)
    for row in waiters:
        if budget.free_at(row.tokens, ahead) > soon:
            break
        found.append(row)
        ahead += row.tokens
    return found


def _reason(lane: Row[Any], time: int) -> QueueReason:
    """The reason for which jobs of the lane wait."""
    if breaker.is_open(lane):
        return "model_down"
    return "paused" if lane.paused_until > time else "rate_limit"


def batched(values: Collection[str], size: int) -> Iterator[list[str]]:
    """The values in lists of up to ``size``."""
    remaining = iter(values)
    while some := list(islice(remaining, size)):
        yield some
