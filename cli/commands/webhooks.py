"""The commands for webhooks: redelivery, endpoints, test calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import arguments, running
from cli.arguments import AsJson
from cli.groups import CommandLine, group

if TYPE_CHECKING:
    from dispatch.webhook_rules import WebhookRules
    from providers.webhooks.sender import HttpWebhookSender

app = CommandLine()
webhooks_app = group("Test whether a receiver gets webhooks.")
app.add_typer(webhooks_app, name="webhooks")


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


@app.command()
def endpoints(
    enable: Annotated[str | None, typer.Option(metavar="URL", help="Send to this one again.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")] = None,
    as_json: AsJson = False,
) -> int:
    """List receivers of webhooks. One that failed for five days, or answered 410, is disabled until you enable it."""
    if enable is None:
        return running.with_webhooks(lambda webhooks: webhooks.list_endpoints(tenant), as_json=as_json)
    return running.with_webhooks(lambda webhooks: webhooks.enable(enable, tenant), as_json=as_json)


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
