"""The commands `doctor` and `drill`."""

from __future__ import annotations

from typing import Annotated

import typer

from chatjobs.errors import ConfigurationError
from cli import running
from cli.arguments import AsJson
from cli.groups import CommandLine

app = CommandLine()


@app.command()
def doctor(
    live: Annotated[
        bool,
        typer.Option("--live", help="Also call the model, for about a cent: does it continue a text, how, how surely?"),
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that --live calls; mistral-small-latest if absent. Repeatable, in the order of"
            " fallbackModels: each is judged, and how it goes on with the text of those before it."
        ),
    ] = None,
    calls: Annotated[
        int | None,
        typer.Option(min=0, max=200, help="Calls with which --live judges a model's continued answers; 20 if absent."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=3600, help="How long --live may judge a model; 180 if absent.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Say what is missing or wrong here, and how to mend it.

    Key, way out, Temporal, workers, database, gateway, webhooks, clock, versions; within 20 seconds. Changes nothing;
    only --live remembers how the server continues interrupted answers. The exit code is 1 where there is a problem.
    """
    from cli.doctor.command import MOST_MODELS, LiveCalls, run

    if len(model or ()) > MOST_MODELS:
        raise typer.BadParameter(f"at most {MOST_MODELS} models, as many as a job may have", param_hint="--model")
    found = LiveCalls(model or (), calls, seconds) if live else None
    return running.exit_code_of(run(live=found, as_json=as_json))


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
    """Break a stack of its own in every known way, and check its jobs.

    An auditor checks from outside.

    Starts its own Temporal, simulator, workers and gateways on free ports; a running service is not touched. The exit
    code is 1 where an invariant is violated.
    """
    try:
        from drill.run import DrillPlan, run
    except ModuleNotFoundError as error:
        if error.name != "drill":
            raise
        raise ConfigurationError("the image has no drill; run `make drill` in a checkout of the project") from None

    running.enable_ctrl_c()
    plan = DrillPlan(jobs, kills, scale, workers, gateways, seed, only, database, keep)
    return run(plan, as_json=as_json)
