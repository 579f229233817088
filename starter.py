"""The command line: chat, start, watch and everything else that `starter.py --help` lists.

The commands are in cli/commands/. Heavy imports are made when a command runs, so that `--help` is fast.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # during the imports there is nothing to clean up, so Ctrl-C ends without a traceback
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
from cli.commands import administration, batches, checks, jobs, schedules, webhooks
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
  1    the job or an item of the batch failed or was cancelled; a receiver did
       not take the test call; doctor found a problem
  2    usage: invalid request, unknown job or batch, no run to save
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
    pretty_exceptions_enable=False,  # its tracebacks show values: prompts, keys
)
for family in (jobs.app, batches.app, schedules.app, webhooks.app, checks.app, administration.app):
    app.add_typer(family)


def _print_version(requested: bool) -> None:
    if requested:
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
    """Replace standard streams that the parent process closed by /dev/null, so that the next file does not get their
    descriptor."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            if (opened := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(opened, number)
            setattr(sys, name, os.fdopen(number, mode))


def main(arguments: Sequence[str]) -> int:
    """Run a command; the exit code. Errors become one sentence, or one JSON object, on standard error."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    as_json = "--json" in arguments
    try:
        return int(app(arguments, prog_name="starter.py", standalone_mode=False) or OK)
    except ChatJobsError as error:
        _print_error(error, as_json)
        return UNREACHABLE if isinstance(error, StorageError | TemporalUnavailable) else USAGE
    except TyperException as error:
        _print_error(error, as_json)
        return USAGE
    except KeyboardInterrupt:
        typer.echo("starter: interrupted", err=True)
        return INTERRUPTED
    except SystemExit:  # raised by typer when the reader of its help has closed the pipe
        discard(sys.stdout)
        return OK
    except OSError as error:  # for example a full disk
        discard(sys.stdout)
        typer.echo(f"starter: {error.filename or 'the output cannot be written'}: {error.strerror}", err=True)
        return FAILED


def _print_error(error: ChatJobsError | TyperException, as_json: bool) -> None:
    from cli.usage import sentence

    text = sentence(error)
    line = json.dumps({"error": _error_fields(error, text)}, ensure_ascii=False) if as_json else f"starter: {text}"
    with suppress(BrokenPipeError):
        typer.echo(line, err=True)


def _error_fields(error: ChatJobsError | TyperException, text: str) -> dict[str, Any]:
    if isinstance(error, InvalidRequest):
        problems = [{"pointer": place, "message": why} for place, why in error.problems]
        return {"code": error.code, "message": text, "errors": problems}
    return {"code": error.code if isinstance(error, ChatJobsError) else "usage", "message": text}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
    exit_now(code)
