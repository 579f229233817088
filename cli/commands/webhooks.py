"""The commands for webhooks: redelivery, endpoints, test calls; and the feed of all jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import arguments, running
from cli.arguments import AsJson
from cli.groups import CommandLine, EndpointCommands, group

if TYPE_CHECKING:
    from dispatch.webhook_rules import WebhookRules
    from providers.webhooks.sender import HttpWebhookSender

app = CommandLine()
webhooks_app = group("Test whether a receiver gets webhooks.")
app.add_typer(webhooks_app, name="webhooks")
endpoints_app = group("Receivers of webhooks: list them, and those of all jobs: add and remove them.", EndpointCommands)
app.add_typer(endpoints_app, name="endpoints")


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

    begin = arguments.moment(since, "--since")
    if (name is None) == (begin is None):
        raise typer.BadParameter("give an id or --since, one of them")
    if begin is None:
        if until or status or url or tenant:
            raise typer.BadParameter("--until, --status, --url and --tenant go with --since")
        return running.with_webhooks(lambda webhooks: webhooks.redeliver(str(name)), as_json=as_json)
    chosen = Redelivery(since=begin, until=arguments.moment(until, "--until"), status=status or "failed", url=url)
    return running.with_webhooks(lambda webhooks: webhooks.redeliver_some(chosen, tenant), as_json=as_json)


@endpoints_app.command("list")
def list_endpoints(
    enable: Annotated[str | None, typer.Option(metavar="URL", help="Send to this one again.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")] = None,
    as_json: AsJson = False,
) -> int:
    """List receivers of webhooks. One that failed for five days, or answered 410, is disabled until you enable it.

    Without a command, `endpoints` does this.
    """
    if enable is None:
        return running.with_webhooks(lambda webhooks: webhooks.list_endpoints(tenant), as_json=as_json)
    return running.with_webhooks(lambda webhooks: webhooks.enable(enable, tenant), as_json=as_json)


@endpoints_app.command("add")
def add_endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="The receiver's.")],
    event: Annotated[
        list[str] | None, typer.Option(metavar="EVENT", help="Such as chat.failed; may be repeated. Else: all.")
    ] = None,
    secret_file: Annotated[
        typer.FileText | None,
        typer.Option(metavar="FILE", help="Has a secret of its own (- is standard input); else the tenant's signs."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")] = None,
    as_json: AsJson = False,
) -> int:
    """Send the webhooks of all jobs and batches to a URL; or change its events, or its secret.

    A secret that is replaced signs beside the new one for 24 hours.
    """
    from chatjobs.contracts import EndpointRequest, parse

    given = {"url": url, "events": event or None, "secret": secret_file.read().strip() if secret_file else None}
    wanted = parse(EndpointRequest, {name: value for name, value in given.items() if value is not None})
    return running.with_webhooks(lambda webhooks: webhooks.add_endpoint(wanted, tenant), as_json=as_json)


@endpoints_app.command("remove")
def remove_endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="As it is listed.")],
    tenant: Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")] = None,
) -> int:
    """Send the webhooks of all jobs to a URL no longer. Jobs that name it themselves still do."""
    return running.with_webhooks(lambda webhooks: webhooks.remove_endpoint(url, tenant), as_json=False)


@app.command()
def listen(
    after: Annotated[
        int | None, typer.Option(min=0, metavar="ID", help="Begin after this event; 0: with the oldest. Else: now.")
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option(metavar="EVENT", help="Such as chat.failed; may be repeated. Else: all.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Those of all tenants.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print what happens to all jobs: created, started, ended. Ctrl-C ends it."""
    from chatjobs.contracts import FeedEventType

    if everyone and tenant:
        raise typer.BadParameter("give --tenant or --all, one of them")
    try:
        types = [FeedEventType(one) for one in event or ()]
    except ValueError:
        raise typer.BadParameter(f"--event is one of {', '.join(one.value for one in FeedEventType)}") from None
    return running.with_feed(
        lambda feed: feed.listen(after, types, tenant, everyone=everyone, most=count), as_json=as_json
    )


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
        from providers.webhooks.sender import HttpWebhookSender

        return HttpWebhookSender(policy=rules)

    return running.with_webhooks(lambda webhooks: webhooks.test(url, tenant, sender_of), as_json=as_json)
