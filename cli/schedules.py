"""The commands `schedules`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chatjobs.contracts import Schedule, ScheduleRun
from chatjobs.errors import ChatJobsError
from cli.output import COLOURS, Records, complain, console, local_time, one_line, safe, seconds, write
from cli.place import ServiceLocation
from dispatch.intake import Intake
from dispatch.job_schedules import JobSchedules, shown
from dispatch.server_knowledge import PrefixRule
from dispatch.stores import job_store
from domain.values import StoredSchedule
from storage.engine.database import Database

OK = 0
MOST_LISTED = 1_000


class ScheduleCommands:
    """Each command is a method that prints and returns the exit code. Changes are stored, then passed to Temporal."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._place = place
        self._database = database
        self._jobs = job_store(place.settings, database)
        self._store = self._jobs.schedules
        self._as_json = as_json

    async def add(self, body: dict[str, Any], tenant: str | None) -> int:
        policy = await self._place.webhook_rules(self._database).now()
        prefixes = PrefixRule(self._place.settings, self._database)
        intake = Intake(jobs=self._jobs, client=None, policy=lambda: policy, prefixes=prefixes)
        rules = JobSchedules(jobs=self._jobs, intake=intake, client=None)
        schedule, created = await rules.put(body, tenant=self._owner(tenant))
        return await self._changed(schedule, "made" if created else "is there, and does this now")

    async def list(self, tenant: str | None) -> int:
        owner = self._owner(tenant)
        found = await self._store.list(owner, limit=MOST_LISTED)
        runs = await self._store.last_runs(owner, [one.id for one in found])
        schedules = [self._shown(one, runs[one.id], with_request=False) for one in found]
        if self._as_json:
            write(f"{one_line({'schedules': [one.model_dump(mode='json') for one in schedules]})}\n")
        elif schedules:
            console().print(_table(schedules))
        else:
            complain("there are no schedules; `starter.py schedules add` makes one")
        return OK

    async def show(self, schedule_id: str, tenant: str | None) -> int:
        self._print(await self._whole(await self._store.get(self._owner(tenant), schedule_id)))
        return OK

    async def pause(self, schedule_id: str, note: str | None, tenant: str | None) -> int:
        return await self._changed(await self._store.pause(self._owner(tenant), schedule_id, note), "paused")

    async def resume(self, schedule_id: str, note: str | None, tenant: str | None) -> int:
        return await self._changed(await self._store.resume(self._owner(tenant), schedule_id, note), "resumed")

    async def trigger(self, schedule_id: str, tenant: str | None) -> int:
        return await self._changed(await self._store.trigger(self._owner(tenant), schedule_id), "triggered")

    async def delete(self, schedule_id: str, tenant: str | None) -> int:
        deleted = await self._store.delete(self._owner(tenant), schedule_id)
        await self._apply(deleted)
        write(f"{one_line({'id': deleted.id, 'deleted': True})}\n" if self._as_json else f"{deleted.id} deleted\n")
        return OK

    async def _changed(self, schedule: StoredSchedule, what: str) -> int:
        """Pass a stored change to Temporal, and print it."""
        await self._apply(schedule)
        if self._as_json:
            self._print(await self._whole(await self._store.newest(schedule.uid) or schedule))
        else:
            write(f"{schedule.id} {what}\n")
        return OK

    async def _apply(self, schedule: StoredSchedule) -> None:
        try:
            client = await self._place.connect()
            intake = Intake(jobs=self._jobs, client=client)
            await JobSchedules(jobs=self._jobs, intake=intake, client=client).apply(schedule)
        except ChatJobsError as error:
            complain(f"{error.message}; this is stored, and done when Temporal is back")

    async def _whole(self, schedule: StoredSchedule) -> Schedule:
        runs = await self._store.last_runs(schedule.tenant, [schedule.id])
        return self._shown(schedule, runs[schedule.id], with_request=True)

    def _shown(self, schedule: StoredSchedule, runs: Sequence[ScheduleRun], *, with_request: bool) -> Schedule:
        url = self._place.links.of_schedule(schedule.name)
        return shown(schedule, runs, url=url, with_request=with_request, now=datetime.now(UTC))

    def _owner(self, tenant: str | None) -> str:
        return tenant or self._place.settings.chatjobs_direct_tenant

    def _print(self, schedule: Schedule) -> None:
        if self._as_json:
            write(f"{one_line(schedule.model_dump(mode='json'))}\n")
        else:
            console().print(_page(schedule), soft_wrap=True)


def _table(schedules: Sequence[Schedule]) -> RenderableType:
    table = Records("schedule", "runs", "next", "last", "job or batch")
    for one in schedules:
        last = one.last_runs[0] if one.last_runs else None
        table.add_row(one.id, _timing(one), _next(one), _outcome(last), _made(last) if last else "")
    return table


def _page(schedule: Schedule) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    lines: dict[str, str | Text] = {
        "schedule": schedule.id,
        "runs": _timing(schedule),
        "if one still runs": schedule.overlap,
        "made up for within": seconds(timedelta(seconds=schedule.catchup_seconds)),
        "state": ("paused" if schedule.paused else "active") + (f": {safe(schedule.note)}" if schedule.note else ""),
        "next": "\n".join(local_time(time) for time in schedule.next_runs[:5]) or _next(schedule),
        "temporal": schedule.temporal_url or "",
        "asks": safe(one_line(schedule.request or schedule.batch)),
    }
    for name, value in lines.items():
        facts.add_row(name, value)
    runs = Records("last runs", "status", "begun", "ended")
    for run in schedule.last_runs:
        runs.add_row(_made(run), _outcome(run), local_time(run.created_at), local_time(run.completed_at))
    return Group(facts, "", runs) if schedule.last_runs else facts


def _made(run: ScheduleRun) -> str:
    """The id of what a run has made."""
    return run.job_id or run.batch_id or ""


def _timing(schedule: Schedule) -> str:
    if schedule.every is not None:
        return f"every {seconds(timedelta(seconds=schedule.every))}"
    return f"{schedule.cron} ({schedule.timezone})"


def _next(schedule: Schedule) -> str:
    if schedule.paused:
        return "paused"
    if not schedule.next_runs:
        return "when Temporal has it" if schedule.pending else "none"
    return local_time(schedule.next_runs[0])


def _outcome(run: ScheduleRun | None) -> str | Text:
    return Text(run.status.value, COLOURS.get(run.status.value, "")) if run else ""
