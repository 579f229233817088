"""The commands for API keys, webhook secrets, rate limits and pauses."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import arguments, running
from cli.arguments import AsJson, OfTenant, Tenant
from cli.groups import CommandLine, LaneCommands, group
from domain.roles import Role

app = CommandLine()
keys_app = group("Keys of the HTTP API. Once there is one, every call needs one.")
secrets_app = group("Webhook secrets of tenants. The default tenant's are in WEBHOOK_SECRET.")
app.add_typer(keys_app, name="keys")
app.add_typer(secrets_app, name="secrets")
limits_app = group(
    "How many calls of the model may start and run, and who uses the lanes. A lane is a key and a family of models; its"
    " limits are over all workers.",
    LaneCommands,
)
app.add_typer(limits_app, name="limits")

Lane = Annotated[str, typer.Argument(metavar="LANE", help="Its name, as in the list: 0a1b2c3d:mistral-small.")]


OneLane = Annotated[str | None, typer.Option("--lane", metavar="NAME", help="Only calls of this lane.")]
OneTenant = Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Only jobs of this tenant.")]


@app.command()
def pause(
    lane: OneLane = None,
    tenant: OneTenant = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for those who wait.")] = "",
    as_json: AsJson = False,
) -> int:
    """Pause a lane, a tenant, or everything: no worker starts a call.

    Answers that are being generated go on. Waiting jobs keep their place, but limits.queueSeconds goes on: a job whose
    time is over while it is paused fails with queue_timeout.
    """
    return running.with_pauses(lambda pauses: pauses.pause(lane, tenant, reason), as_json=as_json)


@app.command()
def resume(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="The id of a job that has ended.")] = None,
    lane: OneLane = None,
    tenant: OneTenant = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the job's end; the exit code is its outcome.")] = False,
    as_json: AsJson = False,
) -> int:
    """Let a job that failed or was cancelled go on from its text; without a JOB, end a pause.

    It is the same job: its readers go on, and its next outcome has a webhook of its own. After a pause the jobs that
    wait start at once, at their lane's pace.
    """
    if job is None:
        if wait:
            raise typer.BadParameter("--wait goes with a job")
        return running.with_pauses(lambda pauses: pauses.resume(lane, tenant), as_json=as_json)
    if lane or tenant:
        raise typer.BadParameter("--lane and --tenant name a pause; leave the job out")
    return running.with_service(lambda service: service.resume(job, wait=wait), as_json=as_json, runs=True)


@keys_app.command("add")
def add_key(
    tenant: Tenant = None,
    name: Annotated[str, typer.Option(help="What to call it in lists.")] = "",
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="A time (2027-01-31T12:00Z), or in how long: 30m, 2h, 90d.")
    ] = None,
    role: Annotated[Role, typer.Option(help="What it may do; `admin` manages keys.")] = Role.WRITE,
    as_json: AsJson = False,
) -> int:
    """Make a key and print it. It is shown this once."""
    until = arguments.later(expires, "--expires")
    return running.with_keys(lambda commands: commands.add_key(tenant, name, until, role), as_json=as_json, create=True)


@keys_app.command("role")
def set_role(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The id of a key, as in the list: key_…")],
    role: Annotated[Role, typer.Argument(help="What it may do from now on.")],
    as_json: AsJson = False,
) -> int:
    """Change what a key may do: `read` looks, `write` starts and changes jobs, `admin` manages keys and limits.

    All gateways apply it within two seconds.
    """
    return running.with_keys(lambda commands: commands.set_role(key, role), as_json=as_json)


@keys_app.command("list")
def list_keys(tenant: OfTenant = None, as_json: AsJson = False) -> int:
    """List keys, also those that are revoked or expired."""
    return running.with_keys(lambda commands: commands.list_keys(tenant), as_json=as_json)


@keys_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The id of a key, as in the list: key_…")],
    as_json: AsJson = False,
) -> int:
    """End a key, for good. Streams that it opened are closed within seconds."""
    return running.with_keys(lambda commands: commands.revoke_key(key), as_json=as_json)


@secrets_app.command("rotate")
def rotate_secret(tenant: Tenant = None, as_json: AsJson = False) -> int:
    """Make a new secret and print it. The one before signs for another 24 hours, so that receivers can follow."""
    return running.with_keys(lambda commands: commands.rotate_secret(tenant), as_json=as_json, create=True)


@secrets_app.command("list")
def list_secrets(tenant: OfTenant = None, as_json: AsJson = False) -> int:
    """List the secrets that sign, by fingerprint: the first 12 hex digits of their SHA-256."""
    return running.with_keys(lambda commands: commands.list_secrets(tenant), as_json=as_json)


PerSecond = Annotated[float | None, typer.Option(help="Calls that may start in a second.")]
AtOnce = Annotated[str | None, typer.Option(metavar="N|none", help="Calls that may run at once; none: any number.")]
TokensPerMinute = Annotated[
    str | None,
    typer.Option(metavar="N|none", help="Tokens that calls may use in a minute; none: as many as there are."),
]


@limits_app.command("list")
def list_limits(as_json: AsJson = False) -> int:
    """List lanes: the limits, where they come from, who waits, what is paused. `limits` alone does the same."""
    return running.with_limits(lambda limits: limits.list(), as_json=as_json)


@limits_app.command("set")
def set_limits(
    lane: Lane,
    rate: Annotated[
        float | None, typer.Argument(metavar="[PER_SECOND]", help="Short for --per-second.", show_default=False)
    ] = None,
    per_second: PerSecond = None,
    at_once: AtOnce = None,
    tokens_per_minute: TokensPerMinute = None,
    as_json: AsJson = False,
) -> int:
    """Change a lane's limits, for all workers, from their next call on. `limits LANE --at-once N` does the same.

    Where the model's headers tell of lower ones, those hold. Calls that run go on.
    """
    per_second = rate if per_second is None else per_second
    changes = arguments.given(per_second=per_second, at_once=at_once, tokens_per_minute=tokens_per_minute)
    return running.with_limits(lambda limits: limits.set(lane, changes), as_json=as_json, create=True)


@limits_app.command("reset")
def reset_limits(lane: Lane, as_json: AsJson = False) -> int:
    """Back to MISTRAL_REQUESTS_PER_SECOND, and any number of calls at once and of tokens."""
    return running.with_limits(lambda limits: limits.reset(lane), as_json=as_json)
