"""The command line: chat, start, watch and everything else that `starter.py --help` lists.

The commands are in cli/commands/. Nothing heavy is imported before one runs: `--help` answers at once.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # while the rest is imported there is nothing to leave in order, and no traceback to show
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from chatjobs.errors import ChatJobsError, InvalidRequest
from cli.commands import administration, checks, jobs, webhooks
from cli.groups import FAILED, INTERRUPTED, OK, UNREACHABLE, USAGE, group
from cli.running import discard
from domain.build import VERSION
from domain.errors import StorageError, TemporalUnavailable
from domain.process_exit import exit_now

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

app = group(
    "Durable chat jobs for Mistral: start them, watch them, look after them.",
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,  # its traceback would show values: prompts, keys
)
for family in (jobs.app, webhooks.app, checks.app, administration.app):
    app.add_typer(family)


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
        discard(sys.stdout)
        return OK
    except OSError as error:  # a full disk, for one
        discard(sys.stdout)
        typer.echo(f"starter: {error.filename or 'the output cannot be written'}: {error.strerror}", err=True)
        return FAILED


def _complain(error: ChatJobsError | TyperException, as_json: bool) -> None:
    from cli.usage import sentence

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
