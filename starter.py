"""The command line: chat, start, watch and everything else that `starter.py --help` lists.

Here is what can be typed in and what comes of errors; what the commands do is in terminal/service.py. Nothing heavy is
imported before a command runs: `--help` answers at once.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # while the rest is imported there is nothing to leave in order, and no traceback to show
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import asyncio
import io
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, TypeVar, get_args

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from chatjobs.errors import ChatJobsError, InvalidRequest, StorageError, TemporalUnavailable
from process_exit import exit_now

if TYPE_CHECKING:
    from providers.webhook_sender import HttpWebhookSender
    from terminal.deliveries import Webhooks
    from terminal.keys import Administration
    from terminal.limits import Limits
    from terminal.service import Service
    from webhook_rules import WebhookRules

OK, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
EPILOG = """
\b
Exit codes:
  0    ok; also: the answer is incomplete, or the job is stored and is started
       when Temporal is back
  1    the job failed or was cancelled; a receiver did not take the test call;
       doctor found a problem
  2    usage: invalid request, unknown job
  3    no service runs here, the database is unreachable, or Temporal where
       nothing was stored
  130  Ctrl-C: a watcher has left, the job goes on

The running service is found through endpoints.json in CHATJOBS_DATA_DIR (default .chatjobs), or TEMPORAL_* and
CHATJOBS_DATABASE_URL.
"""

VERSION = "0.1.0"
"""That of pyproject.toml, which a container image does not have."""


F = TypeVar("F", bound=Callable[..., Any])
WIDEST = 80


class Commands(TyperGroup):
    """A group of commands that prints its help, and succeeds, where none of them is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            typer.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """A command whose usage names a required argument without typer's braces around it."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class CommandLine(typer.Typer):
    """Commands of this kind."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        return super().command(name, cls=Command, **options)


def group(help_text: str, **options: Any) -> CommandLine:
    return CommandLine(
        cls=Commands,
        help=help_text,
        rich_markup_mode=None,  # plain help answers sooner, and its paragraphs fit the screen
        suggest_commands=False,  # terminal/usage.py does
        context_settings={
            "help_option_names": ["-h", "--help"],
            "terminal_width": min(get_terminal_size().columns, WIDEST),  # typer's own is 50 at least
        },
        **options,
    )


app = group(
    "Durable chat jobs for Mistral: start them, watch them, look after them.",
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,  # its traceback would show values: prompts, keys
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chatjobs {VERSION}")
        raise typer.Exit


@app.callback()
def common(
    _: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that need no command."""


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; errors are JSON on standard error.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")]
Model = Annotated[str | None, typer.Option(help="Mistral's name of the model.")]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]
MaxTokens = Annotated[int | None, typer.Option(help="The longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 to 2.")]
Callback = Annotated[str | None, typer.Option(metavar="URL", help="A webhook that hears of the outcome.")]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the job; repeatable.")]
Reasoning = Annotated[
    bool, typer.Option("--reasoning", help="Print the model's reasoning, too, where it is no screen.")
]
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]


# ---------------------------------------------------------------------------------------------- commands


@app.command()
def chat(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from standard input.")],
    model: Model = None,
    system: System = None,
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
    options = _fields(model, max_tokens, temperature, callback, metadata)
    body = {"messages": _messages(prompt, system), **options}

    return _run(lambda service: service.chat(body, reasoning=reasoning), as_json=as_json, runs=True)


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
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    callback: Callback = None,
    metadata: Metadata = None,
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
    body = _request(prompt, file, system) | _fields(model, max_tokens, temperature, callback, metadata)
    if direct and idempotency_key:
        raise typer.BadParameter("with --direct, jobId in the request takes the place of --idempotency-key")

    if direct:
        return _run(lambda service: service.start_direct(body, wait=wait), as_json=as_json, database=False, runs=True)
    return _run(lambda service: service.start(body, idempotency_key, wait=wait), as_json=as_json, runs=True)


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
    place = _place(position)
    return _run(lambda service: service.watch(job, *place, reasoning=reasoning), as_json=as_json)


@app.command()
def show(job: JobId, as_json: AsJson = False) -> int:
    """Show everything about a job.

    Outcome, usage, attempts, deliveries, the link to its run, the answer.
    """
    return _run(lambda service: service.show(job), as_json=as_json)


@app.command("list")
def list_jobs(
    status: Annotated[
        Status | None, typer.Option(metavar="STATUS", help=f"Only jobs that are there: {', '.join(get_args(Status))}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only these; repeatable.")] = None,
    since: Annotated[
        str | None, typer.Option(help="A time (2026-01-31T12:00Z), or how long ago: 90s, 30m, 2h, 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same, for the end.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest.")] = 50,
    as_json: AsJson = False,
) -> int:
    """List jobs, newest first."""
    filters: dict[str, Any] = {"status": status, "model": model, "metadata": _pairs(metadata), "limit": limit}
    filters |= {"since": _moment(since, "--since"), "until": _moment(until, "--until")}
    return _run(lambda service: service.list(**filters), as_json=as_json)


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> int:
    """Cancel a job. The wish is stored: where Temporal is away, it is sent when it is back."""
    return _run(lambda service: service.cancel(job), as_json=as_json)


@app.command()
def delete(job: JobId, as_json: AsJson = False) -> int:
    """Delete a finished job's request, answer and deliveries. What it cost and how it ended stays."""
    return _run(lambda service: service.delete(job), as_json=as_json)


@app.command()
def replay(
    job: JobId,
    model: Model = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    callback: Callback = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=JSON", help="Change any field; null unsets; repeatable.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit code tells the outcome.")] = False,
    as_json: AsJson = False,
) -> int:
    """Start a new job with a job's request; print its id."""
    overrides = _fields(model, max_tokens, temperature, callback, None) | _changes(changes)
    return _run(lambda service: service.replay(job, overrides, wait=wait), as_json=as_json, runs=True)


@app.command()
def redeliver(
    name: Annotated[str | None, typer.Argument(metavar="JOB|DELIVERY", help="The id of a job or a delivery.")] = None,
    since: Annotated[
        str | None, typer.Option(help="In place of an id: all from a time (2026-01-31T12:00Z) or 90s, 30m, 2h, 7d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same, for the end.")] = None,
    status: Annotated[
        Literal["pending", "delivered", "failed"] | None, typer.Option(help="Only deliveries that are; else: failed.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Only those to this URL.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")] = None,
    as_json: AsJson = False,
) -> int:
    """Make webhooks again, now.

    The same bodies under the same ids, with fresh signatures.
    """
    from chatjobs.contracts import Redelivery

    begin = _moment(since, "--since")
    if (name is None) == (begin is None):
        raise typer.BadParameter("give an id or --since, one of them")
    if begin is None:
        if until or status or url or tenant:
            raise typer.BadParameter("--until, --status, --url and --tenant go with --since")
        return _webhooks(lambda webhooks: webhooks.redeliver(str(name)), as_json=as_json)
    chosen = Redelivery(since=begin, until=_moment(until, "--until"), status=status or "failed", url=url)
    return _webhooks(lambda webhooks: webhooks.redeliver_some(chosen, tenant), as_json=as_json)


@app.command()
def endpoints(
    enable: Annotated[str | None, typer.Option(metavar="URL", help="Send to this one again.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")] = None,
    as_json: AsJson = False,
) -> int:
    """How webhooks fare, per URL. One that failed for five days, or answered 410, is disabled until you enable it."""
    if enable is None:
        return _webhooks(lambda webhooks: webhooks.list_endpoints(tenant), as_json=as_json)
    return _webhooks(lambda webhooks: webhooks.enable(enable, tenant), as_json=as_json)


webhooks_app = group("Whether a receiver hears webhooks.")
app.add_typer(webhooks_app, name="webhooks")


@webhooks_app.command("test")
def call_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="The receiver's.")],
    tenant: Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")] = None,
    as_json: AsJson = False,
) -> int:
    """Call a URL once, from here, and print what it answers.

    With the event webhook.test, signed like every webhook and judged by the same rules. The exit code is 1 where it is
    not delivered.
    """

    def sender_of(rules: WebhookRules) -> HttpWebhookSender:
        from providers.webhook_sender import HttpWebhookSender

        return HttpWebhookSender(policy=rules)

    return _webhooks(lambda webhooks: webhooks.test(url, tenant, sender_of), as_json=as_json)


# --------------------------------------------------------------------------------------- administration

keys_app = group("Keys of the HTTP API. Once there is one, nobody gets in without.")
secrets_app = group("Webhook secrets of tenants. The default tenant's are in WEBHOOK_SECRET.")
app.add_typer(keys_app, name="keys")
app.add_typer(secrets_app, name="secrets")
limits_app = group(
    "How fast calls of the model may start. One limit for each key and family of models, over all workers."
)
app.add_typer(limits_app, name="limits")


@app.command()
def doctor(
    live: Annotated[
        bool,
        typer.Option("--live", help="Also call the model, for less than a cent: does it continue a text, and how?"),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The model that --live calls; mistral-small-latest if absent.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Say what is missing or wrong here, and how to mend it.

    Key, way out, Temporal, workers, database, gateway, webhooks, clock, versions; within 20 seconds. Changes nothing;
    only --live remembers how the server continues interrupted answers. The exit code is 1 where there is a problem.
    """
    from doctor import run

    return _ran(run(live=live, as_json=as_json, model=model))


@app.command()
def drill(
    jobs: Annotated[int, typer.Option(min=0, help="Go on with rounds of all faults until so many jobs ran.")] = 0,
    kills: Annotated[int, typer.Option(min=0, help="The same for killed processes.")] = 0,
    scale: Annotated[int, typer.Option(min=1, max=100, help="So many times the jobs in each fault.")] = 1,
    only: Annotated[str, typer.Option(metavar="WORDS", help="Only faults whose name has these words.")] = "",
    workers: Annotated[int, typer.Option(min=2, max=16)] = 3,
    gateways: Annotated[int, typer.Option(min=1, max=8)] = 2,
    seed: Annotated[int, typer.Option(help="Another seed, another order of faults.")] = 1,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="An empty Postgres database; without it, SQLite.")
    ] = None,
    keep: Annotated[str | None, typer.Option(metavar="DIRECTORY", help="Where to keep data and logs.")] = None,
    as_json: AsJson = False,
) -> int:
    """Break a stack of its own, and judge what became of its jobs.

    In every way we know; an auditor judges from outside.

    Starts its own Temporal, simulator, workers and gateways on free ports; a running service is not touched. The exit
    code is 1 where an invariant is violated.
    """
    from drill.run import Plan, run

    _heed_ctrl_c()
    plan = Plan(jobs, kills, scale, workers, gateways, seed, only, database, keep)
    return run(plan, as_json=as_json)


Tenant = Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]


@keys_app.command("add")
def add_key(
    tenant: Tenant = None,
    name: Annotated[str, typer.Option(help="What to call it in lists.")] = "",
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="A time (2027-01-31T12:00Z), or in how long: 30m, 2h, 90d.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Make a key and print it. It is shown this once."""
    until = _expiry(expires)
    return _administer(lambda office: office.add_key(tenant, name, until), as_json=as_json, create=True)


@keys_app.command("list")
def list_keys(tenant: OfTenant = None, as_json: AsJson = False) -> int:
    """List keys, also those that are revoked or expired."""
    return _administer(lambda office: office.list_keys(tenant), as_json=as_json)


@keys_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The id of a key, as in the list: key_…")],
    as_json: AsJson = False,
) -> int:
    """End a key, for good. Streams that it opened are closed within seconds."""
    return _administer(lambda office: office.revoke_key(key), as_json=as_json)


@secrets_app.command("rotate")
def rotate_secret(tenant: Tenant = None, as_json: AsJson = False) -> int:
    """Make a new secret and print it. The one before signs for another 24 hours, so that receivers can follow."""
    return _administer(lambda office: office.rotate_secret(tenant), as_json=as_json, create=True)


@secrets_app.command("list")
def list_secrets(tenant: OfTenant = None, as_json: AsJson = False) -> int:
    """List the secrets that sign, by fingerprint: the first 12 hex digits of their SHA-256."""
    return _administer(lambda office: office.list_secrets(tenant), as_json=as_json)


Lane = Annotated[str, typer.Argument(metavar="LANE", help="Its name, as in the list: 0a1b2c3d:mistral-small.")]


@limits_app.command("list")
def list_limits(as_json: AsJson = False) -> int:
    """List lanes: the limit of each, where it comes from, how many jobs wait, whether the model has paused it."""
    return _limits(lambda limits: limits.list(), as_json=as_json)


@limits_app.command("set")
def set_limit(
    lane: Lane,
    per_second: Annotated[float, typer.Argument(metavar="PER_SECOND", help="Calls that may start in a second.")],
    as_json: AsJson = False,
) -> int:
    """Change a lane's limit, for all workers, from their next call on.

    Where the model's headers tell of a lower one, that holds.
    """
    return _limits(lambda limits: limits.set(lane, per_second), as_json=as_json, create=True)


@limits_app.command("reset")
def reset_limit(lane: Lane, as_json: AsJson = False) -> int:
    """Back to MISTRAL_REQUESTS_PER_SECOND."""
    return _limits(lambda limits: limits.reset(lane), as_json=as_json)


# ----------------------------------------------------------------------------------- what was typed in


def _fields(
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    callback: str | None,
    metadata: list[str] | None,
) -> dict[str, Any]:
    """The fields of a request that were given."""
    fields = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "callback": callback}
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    return given | ({"metadata": _pairs(metadata)} if metadata else {})


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": _standard_input() if prompt == "-" else prompt}]


def _standard_input() -> str:
    try:
        return _read_standard_input().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not UTF-8") from None


def _read_standard_input() -> bytes:
    if sys.stdin.isatty():
        typer.echo("starter: reading from the terminal; Ctrl-D on a line of its own ends it", err=True)
    if not (found := sys.stdin.buffer.read()).strip():
        raise typer.BadParameter("standard input is empty")
    return found


def _request(prompt: str | None, file: str | None, system: str | None) -> dict[str, Any]:
    """A request from a prompt or from a file."""
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give a prompt or --file, one of them")
    if prompt is not None:
        return {"messages": _messages(prompt, system)}
    if system is not None:
        raise typer.BadParameter("--system goes with a prompt; in a file, write a system message")
    return _json_object(str(file))


def _json_object(file: str) -> dict[str, Any]:
    try:
        found = json.loads(_read_standard_input() if file == "-" else Path(file).read_bytes())
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--file") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise typer.BadParameter(f"{file} is not JSON: {error.msg} at {where}", param_hint="--file") from None
    except (UnicodeDecodeError, RecursionError):
        raise typer.BadParameter(f"{file} is not JSON in UTF-8, or far too deep", param_hint="--file") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file} must have a JSON object", param_hint="--file")
    return found


def _pairs(given: list[str] | None) -> dict[str, str]:
    return dict(_split(one, "--metadata", "KEY=VALUE") for one in given or ())


def _changes(given: list[str] | None) -> dict[str, Any]:
    changes = {}
    for name, value in (_split(one, "--set", "FIELD=JSON") for one in given or ()):
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            hint = f"the value of {name} is not JSON; a text needs its quotes: '{name}=\"…\"'"
            raise typer.BadParameter(hint, param_hint="--set") from None
    return changes


def _split(pair: str, option: str, form: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not (name and separator):
        raise typer.BadParameter(f"must be {form}", param_hint=option)
    return name, value


def _moment(given: str | None, option: str) -> datetime | None:
    """A time, or how long ago; without a zone it is local."""
    if given is None:
        return None
    if span := _span(given):
        return datetime.now().astimezone() - span
    try:
        return datetime.fromisoformat(given).astimezone()
    except ValueError:
        why = "is neither a time (2026-01-31T12:00Z) nor a length of time (90s, 30m, 2h, 7d)"
        raise typer.BadParameter(why, param_hint=option) from None


def _expiry(given: str | None) -> datetime | None:
    """A time to come, or in how long."""
    span = _span(given or "")
    moment = datetime.now().astimezone() + span if span else _moment(given, "--expires")
    if moment is not None and moment <= datetime.now().astimezone():
        raise typer.BadParameter("must be a time to come", param_hint="--expires")
    return moment


def _span(given: str) -> timedelta | None:
    """``90s``, ``30m``, ``2h``, ``7d``."""
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    found = re.fullmatch(r"(\d{1,6})([smhd])", given)
    return timedelta(**{units[found[2]]: int(found[1])}) if found else None


def _place(given: str | None) -> tuple[int, int]:
    """Epoch and position of an event's id."""
    found = re.fullmatch(r"(\d{1,9})\.(\d{1,12})(\.end)?", given or "1.0")
    if not found:
        raise typer.BadParameter("must be EPOCH.POSITION, as in an event's id", param_hint="--from")
    return int(found[1]), int(found[2])


# --------------------------------------------------------------------------------------------- the frame


def _run(work: Callable[[Service], Awaitable[int]], *, as_json: bool, database: bool = True, runs: bool = False) -> int:
    """Run a command's own part with what it needs, closed again at the end; its exit code.

    ``runs``: a running service is needed, not its database alone, which may be empty yet.
    """
    _expect_something(needs_service=runs)
    from terminal.service import opened

    async def main() -> int:
        async with opened(as_json=as_json, database=database, create=runs) as service:
            return await work(service)

    return _ran(main())


def _administer(work: Callable[[Administration], Awaitable[int]], *, as_json: bool, create: bool = False) -> int:
    """The same for `keys` and `secrets`, which need nothing but the database.

    ``create``: the command may be the first to use it.
    """
    _expect_something(first=create)
    from terminal.keys import opened

    async def main() -> int:
        async with opened(as_json=as_json, create=create) as office:
            return await work(office)

    return _ran(main())


def _webhooks(work: Callable[[Webhooks], Awaitable[int]], *, as_json: bool) -> int:
    """The same for `redeliver`, `endpoints` and `webhooks`."""
    _expect_something()
    from terminal.deliveries import opened

    async def main() -> int:
        async with opened(as_json=as_json) as webhooks:
            return await work(webhooks)

    return _ran(main())


def _limits(work: Callable[[Limits], Awaitable[int]], *, as_json: bool, create: bool = False) -> int:
    """The same for `limits`."""
    _expect_something(first=create)
    from terminal.limits import opened

    async def main() -> int:
        async with opened(as_json=as_json, create=create) as limits:
            return await work(limits)

    return _ran(main())


def _expect_something(*, needs_service: bool = False, first: bool = False) -> None:
    """Say that nothing runs here before the libraries are imported that would look for it."""
    from terminal.local import expect_something

    expect_something(os.environ, needs_service=needs_service, first=first)


def _ran(main: Coroutine[Any, Any, int]) -> int:
    _heed_ctrl_c()
    try:
        return asyncio.run(main)
    except BrokenPipeError:  # `| head` has seen enough; the job goes on
        _discard(sys.stdout)
        return OK


def _heed_ctrl_c() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _discard(stream: TextIO) -> None:
    """What is still in its buffer goes nowhere: the interpreter's exit would complain of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> None:
    """A stream that was closed by who started this is nothing to read from and nowhere to write to, and its number not
    that of the next file."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            if (opened := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(opened, number)
            setattr(sys, name, os.fdopen(number, mode))


def main(arguments: Sequence[str]) -> int:
    """The exit code. Errors become one sentence, or one JSON object, on standard error."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    as_json = "--json" in arguments
    try:
        return int(app(arguments, prog_name="starter.py", standalone_mode=False) or OK)
    except ChatJobsError as error:
        _complain(error, as_json)
        return UNREACHABLE if isinstance(error, StorageError | TemporalUnavailable) else USAGE
    except TyperException as error:
        _complain(error, as_json)
        return USAGE
    except KeyboardInterrupt:
        typer.echo("starter: interrupted", err=True)
        return INTERRUPTED
    except SystemExit:  # of typer, where nobody reads its help
        _discard(sys.stdout)
        return OK
    except OSError as error:  # a full disk, for one
        _discard(sys.stdout)
        typer.echo(f"starter: {error.filename or 'the output cannot be written'}: {error.strerror}", err=True)
        return FAILED


def _complain(error: ChatJobsError | TyperException, as_json: bool) -> None:
    from terminal.usage import sentence

    told = sentence(error)
    line = json.dumps({"error": _described(error, told)}, ensure_ascii=False) if as_json else f"starter: {told}"
    with suppress(BrokenPipeError):
        typer.echo(line, err=True)


def _described(error: ChatJobsError | TyperException, told: str) -> dict[str, Any]:
    if isinstance(error, InvalidRequest):
        problems = [{"pointer": place, "message": why} for place, why in error.problems]
        return {"code": error.code, "message": told, "errors": problems}
    return {"code": error.code if isinstance(error, ChatJobsError) else "usage", "message": told}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
    exit_now(code)
