"""The commands `batch`: many jobs submitted together."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import typer

from cli import arguments, running
from cli.arguments import AsJson, BatchId, Model
from cli.groups import CommandLine, group

Status = Literal["queued", "in_progress", "paused", "completed", "cancelled", "failed"]
Lane = Literal["live", "batch"]
ToFile = Annotated[str, typer.Argument(metavar="FILE", help="Where to write; - is standard output.")]

app = CommandLine()
batch_app = group("Batches: many jobs submitted together, watched and read as one.")
app.add_typer(batch_app, name="batch")


@batch_app.command()
def submit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An item per line, as JSON; - is standard input.")],
    name: Annotated[str | None, typer.Option(help="What to call the batch.")] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="A webhook that gets the batch's end.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="At most so many items at once.")] = None,
    lane: Annotated[
        Lane | None, typer.Option(metavar="LANE", help="live, or batch: Mistral's batch API, at half the price.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(help="With --lane batch: what is not done by then (a time, or 2h) is called live.")
    ] = None,
    model: Model = None,
    defaults: Annotated[
        list[str] | None,
        typer.Option("--default", metavar="FIELD=JSON", help="A field for items that lack it; repeatable."),
    ] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key makes the same batch, not another.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the batch of this file and these options, if there is one.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit code tells the outcome.")] = False,
    as_json: AsJson = False,
) -> int:
    """Start a batch from a file and print its id.

    A line is an item: {"custom_id": "…", "body": {a request}}, as in Mistral's and OpenAI's batch files. Nothing
    begins unless all lines are valid. With --resume: a batch of the same file that was paused goes on, and one that has
    ended tries again what failed or was cancelled.
    """
    if resume and idempotency_key is not None:
        raise typer.BadParameter("--resume makes a key of its own; leave --idempotency-key out")
    if resume and file == "-":
        raise typer.BadParameter("--resume needs a file, which it reads twice")
    fields = arguments.changes(defaults, "--default") | ({"model": model} if model is not None else {})
    end = arguments.later(deadline, "--deadline")
    given: dict[str, Any] = {"name": name, "webhook": webhook, "concurrency": concurrency, "lane": lane}
    given |= {"deadline": end.isoformat() if end else None, "defaults": fields or None}
    settings = {field: value for field, value in given.items() if value is not None}

    with arguments.opened(file) as source:
        return running.with_batches(
            lambda batches: batches.submit(source, settings, idempotency_key, resume=resume, wait=wait),
            as_json=as_json,
            runs=True,
        )


@batch_app.command("list")
def list_batches(
    status: Annotated[
        Status | None,
        typer.Option(metavar="STATUS", help=f"Only batches that are there: {', '.join(get_args(Status))}."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="A time (2026-01-31T12:00Z), or how long ago: 90s, 30m, 2h, 7d.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest.")] = 50,
    as_json: AsJson = False,
) -> int:
    """List batches, newest first."""
    begin = arguments.moment(since, "--since")
    return running.with_batches(lambda batches: batches.list(status, begin, limit), as_json=as_json)


@batch_app.command()
def show(batch: BatchId, as_json: AsJson = False) -> int:
    """Show a batch: its counts, usage, pace, errors by code."""
    return running.with_batches(lambda batches: batches.show(batch), as_json=as_json)


@batch_app.command()
def watch(batch: BatchId, as_json: AsJson = False) -> int:
    """Watch a batch to its end. Ctrl-C detaches, the batch goes on.

    On a screen one live line; with --json the states, one per line. The exit code is 1 unless all items are completed.
    """
    return running.with_batches(lambda batches: batches.watch(batch), as_json=as_json)


@batch_app.command()
def pause(batch: BatchId, as_json: AsJson = False) -> int:
    """Let no further item begin; those that run finish."""
    return running.with_batches(lambda batches: batches.pause(batch), as_json=as_json)


@batch_app.command()
def resume(batch: BatchId, as_json: AsJson = False) -> int:
    """Let a paused batch go on; of one that has ended, what failed or was cancelled."""
    return running.with_batches(lambda batches: batches.resume(batch), as_json=as_json)


@batch_app.command()
def cancel(batch: BatchId, as_json: AsJson = False) -> int:
    """Cancel all items that have not ended. The request is stored, whether Temporal is there or not."""
    return running.with_batches(lambda batches: batches.cancel(batch), as_json=as_json)


@batch_app.command()
def output(batch: BatchId, file: ToFile = "-", as_json: AsJson = False) -> int:
    """Write the answers so far, as JSON lines in the order of the items."""
    return running.with_batches(lambda batches: batches.output(batch, file, errors=False), as_json=as_json)


@batch_app.command()
def errors(batch: BatchId, file: ToFile = "-", as_json: AsJson = False) -> int:
    """Write the items that ended without an answer, as JSON lines in their order."""
    return running.with_batches(lambda batches: batches.output(batch, file, errors=True), as_json=as_json)
