"""The commands `schedules`: jobs and batches that run again and again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import arguments, running
from cli.arguments import AsJson, Callback, MaxTokens, Metadata, Model, System, Temperature, Tenant
from cli.groups import CommandLine, group

app = CommandLine()
schedules_app = group("Requests that become a job again and again, and batches that do.")
app.add_typer(schedules_app, name="schedules")
Id = Annotated[str, typer.Argument(metavar="SCHEDULE", help="The id of a schedule, as in the list.")]
Note = Annotated[str | None, typer.Option(help="Why, for people.")]


@schedules_app.command("add")
def add(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from standard input.")
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="A request as JSON, as for POST /api/jobs; - is standard input.")
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="FILE", help="A batch, as for POST /api/batches.")] = None,
    schedule_id: Annotated[
        str | None, typer.Option("--id", help="Its id; the schedule with this id is replaced.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help='Five fields or a name: "0 2 * * 1-5", @daily.')] = None,
    every: Annotated[str | None, typer.Option(help="In place of --cron: 90s, 15m, 2h, 7d.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of --cron: Europe/Berlin; UTC if absent.")] = None,
    overlap: Annotated[
        str | None,
        typer.Option(
            help="While one runs: skip (if absent), buffer_one, buffer_all, cancel_other, terminate_other, allow_all."
        ),
    ] = None,
    catchup: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="How late a run may be after an outage; a day if absent.")
    ] = None,
    model: Model = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    callback: Callback = None,
    metadata: Metadata = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> int:
    """Make a schedule, or replace the one with this id. Needs --cron or --every."""
    if batch is not None:
        if prompt or file:
            raise typer.BadParameter("give a prompt, --file or --batch, one of them")
        wish: dict[str, Any] = {"batch": arguments.json_object(batch, "--batch")}
    else:
        request = arguments.request(prompt, file, system)
        wish = {"request": request | arguments.fields(model, max_tokens, temperature, callback, metadata)}
    timing = {"id": schedule_id, "cron": cron, "every": every, "timezone": timezone, "overlap": overlap}
    body = wish | {name: value for name, value in {**timing, "catchupSeconds": catchup}.items() if value is not None}
    return running.with_schedules(lambda schedules: schedules.add(body, tenant), as_json=as_json, create=True)


@schedules_app.command("list")
def list_schedules(tenant: Tenant = None, as_json: AsJson = False) -> int:
    """List schedules: when they run, the next time, the last job."""
    return running.with_schedules(lambda schedules: schedules.list(tenant), as_json=as_json)


@schedules_app.command("show")
def show(schedule: Id, tenant: Tenant = None, as_json: AsJson = False) -> int:
    """Show everything about a schedule: what it asks, its next times, its last jobs."""
    return running.with_schedules(lambda schedules: schedules.show(schedule, tenant), as_json=as_json)


@schedules_app.command("pause")
def pause(schedule: Id, note: Note = None, tenant: Tenant = None, as_json: AsJson = False) -> int:
    """Start no more runs, until it is resumed."""
    return running.with_schedules(lambda schedules: schedules.pause(schedule, note, tenant), as_json=as_json)


@schedules_app.command("resume")
def resume(schedule: Id, note: Note = None, tenant: Tenant = None, as_json: AsJson = False) -> int:
    """Start runs again. Those of the pause are not made up for."""
    return running.with_schedules(lambda schedules: schedules.resume(schedule, note, tenant), as_json=as_json)


@schedules_app.command("trigger")
def trigger(schedule: Id, tenant: Tenant = None, as_json: AsJson = False) -> int:
    """Start a run now, also while it is paused."""
    return running.with_schedules(lambda schedules: schedules.trigger(schedule, tenant), as_json=as_json)


@schedules_app.command("delete")
def delete(schedule: Id, tenant: Tenant = None, as_json: AsJson = False) -> int:
    """Delete a schedule. Its jobs stay."""
    return running.with_schedules(lambda schedules: schedules.delete(schedule, tenant), as_json=as_json)
