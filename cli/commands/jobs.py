"""The commands that start, watch and manage jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import typer

from cli import arguments, running
from cli.arguments import (
    AsJson,
    Callback,
    JobId,
    MaxTokens,
    Metadata,
    Model,
    Reasoning,
    ReplyTo,
    System,
    Temperature,
)
from cli.groups import CommandLine

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]
app = CommandLine()


@app.command()
def chat(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from standard input.")],
    model: Model = None,
    system: System = None,
    reply_to: ReplyTo = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    callback: Callback = None,
    metadata: Metadata = None,
    reasoning: Reasoning = False,
    as_json: AsJson = False,
) -> int:
    """Start a job and watch its answer appear.

    On a screen with progress; elsewhere standard output gets the answer and nothing else. With --json: the events of
    the stream, one per line. Ctrl-C detaches, the job goes on.
    """
    options = arguments.fields(model, max_tokens, temperature, callback, metadata)
    body = {"messages": arguments.messages(prompt, system), **options, **arguments.conversation(reply_to)}

    return running.with_service(lambda service: service.chat(body, reasoning=reasoning), as_json=as_json, runs=True)


@app.command()
def start(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from standard input.")
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="A request as JSON, as for POST /api/jobs; - is standard input.")
    ] = None,
    model: Model = None,
    system: System = None,
    reply_to: ReplyTo = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    callback: Callback = None,
    metadata: Metadata = None,
    start_at: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Not before a time (2027-01-31T12:00Z), or in how long: 30m, 2h.")
    ] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key makes the same job, not another.")] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Pass the request through Temporal; needs no database.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit code tells the outcome.")] = False,
    as_json: AsJson = False,
) -> int:
    """Start a job and print its id.

    Options are added to what --file has. Without --direct the job is durable once its id is printed, whether Temporal
    is there or not.
    """
    body = arguments.request(prompt, file, system) | arguments.fields(
        model, max_tokens, temperature, callback, metadata
    )
    body |= arguments.conversation(reply_to)
    if begin := arguments.later(start_at, "--start-at"):
        body["startAt"] = begin.isoformat()
    if direct and idempotency_key:
        raise typer.BadParameter("with --direct, jobId in the request takes the place of --idempotency-key")

    if direct:
        return running.with_service(
            lambda service: service.start_direct(body, wait=wait), as_json=as_json, database=False, runs=True
        )
    return running.with_service(
        lambda service: service.start(body, idempotency_key, wait=wait), as_json=as_json, runs=True
    )


@app.command()
def watch(
    job: JobId,
    position: Annotated[
        str | None, typer.Option("--from", metavar="EPOCH.POSITION", help="Where to go on, as in an event's id.")
    ] = None,
    reasoning: Reasoning = False,
    as_json: AsJson = False,
) -> int:
    """Watch a job's answer, from its beginning to its end. Ctrl-C detaches, the job goes on."""
    begin = arguments.event_position(position)
    return running.with_service(lambda service: service.watch(job, *begin, reasoning=reasoning), as_json=as_json)


@app.command()
def show(job: JobId, as_json: AsJson = False) -> int:
    """Show everything about a job.

    Outcome, usage, attempts, deliveries, the link to its run, the answer.
    """
    return running.with_service(lambda service: service.show(job), as_json=as_json)


@app.command("list")
def list_jobs(
    status: Annotated[
        Status | None, typer.Option(metavar="STATUS", help=f"Only jobs that are there: {', '.join(get_args(Status))}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Only jobs of this schedule.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only these; repeatable.")] = None,
    search: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Only jobs with these words in prompt or answer.")
    ] = None,
    error_code: Annotated[str | None, typer.Option(metavar="CODE", help="Only jobs that failed with this.")] = None,
    replay_of: Annotated[str | None, typer.Option(metavar="JOB", help="Only replays of this job.")] = None,
    thread: Annotated[
        str | None, typer.Option(metavar="JOB", help="Only the conversation that began with this job.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch.")] = None,
    since: Annotated[
        str | None, typer.Option(help="A time (2026-01-31T12:00Z), or how long ago: 90s, 30m, 2h, 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same, for the end.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest.")] = 50,
    as_json: AsJson = False,
) -> int:
    """List jobs, newest first."""
    filters: dict[str, Any] = {"status": status, "model": model, "metadata": arguments.pairs(metadata), "limit": limit}
    filters |= {"search": search, "error_code": error_code, "replay_of": replay_of, "batch_id": batch}
    filters |= {"schedule_id": schedule, "thread": thread}
    filters |= {"since": arguments.moment(since, "--since"), "until": arguments.moment(until, "--until")}
    return running.with_service(lambda service: service.list(**filters), as_json=as_json)


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> int:
    """Cancel a job. The request is stored: if Temporal is unavailable, it is sent once Temporal is back."""
    return running.with_service(lambda service: service.cancel(job), as_json=as_json)


@app.command()
def delete(job: JobId, as_json: AsJson = False) -> int:
    """Delete a finished job's request, answer and deliveries. What it cost and how it ended stays."""
    return running.with_service(lambda service: service.delete(job), as_json=as_json)


@app.command()
def replay(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="The id of a job; without it, a filter.")] = None,
    model: Annotated[
        str | None, typer.Option(help="With a JOB, the new one's model. Without: only jobs of this model.")
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    callback: Callback = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=JSON",
            help="Change any field, messages too: FIELD=@FILE reads it from a file; null unsets; repeatable.",
        ),
    ] = None,
    status: Annotated[Status | None, typer.Option(metavar="STATUS", help="Only jobs that ended so.")] = None,
    error_code: Annotated[str | None, typer.Option(help="Only jobs that failed with this code.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only these; repeatable.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="BATCH", help="Only jobs of this batch.")] = None,
    since: Annotated[
        str | None, typer.Option(help="A time (2026-01-31T12:00Z), or how long ago: 90s, 30m, 2h, 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same, for the end.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replayed.")] = False,
    canary: Annotated[int | None, typer.Option(help="So many jobs first; the rest if few enough of them fail.")] = None,
    max_error_rate: Annotated[
        float | None, typer.Option(help="Stop if more of them fail, from 0 to 1; with --canary 0.5.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the replay in lists.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before many jobs start.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit code tells the outcome.")] = False,
    as_json: AsJson = False,
) -> int:
    """Start a new job with a job's request, or one for each job that matches a filter; print the new id.

    starter.py replay --status failed --since 2h --dry-run says what a replay of many would do.
    """
    chosen = {"status": status, "errorCode": error_code, "batchId": batch, "metadata": arguments.pairs(metadata)}
    chosen |= {"since": arguments.time_text(since, "--since"), "until": arguments.time_text(until, "--until")}
    many = {"dryRun": dry_run, "canary": canary, "maxErrorRate": max_error_rate, "name": name, "yes": yes}
    if job is not None:
        if any(value not in (None, {}, False) for value in (chosen | many).values()):
            raise typer.BadParameter("a filter, and what goes with it, takes the place of JOB: give one of them")
        overrides = arguments.fields(model, max_tokens, temperature, callback, None) | arguments.changes(changes)
        return running.with_service(
            lambda service: service.replay(job, overrides, wait=wait), as_json=as_json, runs=True
        )
    chosen = {key: value for key, value in (chosen | {"model": model}).items() if value not in (None, {})}
    if not chosen:
        raise typer.BadParameter("give a JOB, or a filter such as --status failed --since 2h")
    overrides = arguments.fields(None, max_tokens, temperature, callback, None) | arguments.changes(changes)
    body = {"filter": chosen, "overrides": overrides, "canary": canary, "maxErrorRate": max_error_rate, "name": name}
    body = {key: value for key, value in body.items() if value not in (None, {})}
    return running.with_replays(
        lambda replays: replays.replay(body, dry_run=dry_run, yes=yes, wait=wait), as_json=as_json
    )


@app.command()
def history(
    name: Annotated[
        str, typer.Argument(metavar="JOB", help="The id of a job, of a delivery (whe_…), or of a workflow.")
    ],
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where to save it; - is standard output. Else WORKFLOW.history.json, here."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Save the history of a job's newest run, as Temporal's own tools export it.

    For `make replay`, and for a report of a problem. It has ids, positions, outcomes, and the names of the workers'
    machines; no prompt and no answer, except those of a job that was started through Temporal with its request inline.
    """
    return running.with_histories(lambda histories: histories.save(name, output), as_json=as_json)
