"""Options and arguments that several commands share, and functions that parse their text.

The functions raise typer.BadParameter.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; errors are JSON on standard error.")]
BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="The id of a batch.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.")]
Model = Annotated[str | None, typer.Option(help="Mistral's name of the model.")]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]
MaxTokens = Annotated[int | None, typer.Option(help="The longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 to 2.")]
Callback = Annotated[str | None, typer.Option(metavar="URL", help="A webhook that gets the outcome.")]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the job; repeatable.")]
ReplyTo = Annotated[
    str | None,
    typer.Option(metavar="JOB", help="Go on with the conversation that ended with this job's answer, and its model."),
]
Reasoning = Annotated[
    bool, typer.Option("--reasoning", help="Print the model's reasoning, too, where it is no screen.")
]
Tenant = Annotated[str | None, typer.Option(help="Whose; by default the default tenant's.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]


def fields(
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    callback: str | None,
    metadata: list[str] | None,
) -> dict[str, Any]:
    """The given options as fields of a request."""
    fields = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "callback": callback}
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    return given | ({"metadata": pairs(metadata)} if metadata else {})


def conversation(reply_to: str | None) -> dict[str, str]:
    """The field of a request that goes on with a job's conversation."""
    return {"previousJobId": reply_to} if reply_to is not None else {}


def messages(prompt: str, system: str | None) -> list[dict[str, str]]:
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


def request(prompt: str | None, file: str | None, system: str | None) -> dict[str, Any]:
    """The body of a request, from a prompt or from a file."""
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give a prompt or --file, one of them")
    if prompt is not None:
        return {"messages": messages(prompt, system)}
    if system is not None:
        raise typer.BadParameter("--system goes with a prompt; in a file, write a system message")
    return json_object(str(file), "--file")


def json_object(file: str, option: str) -> dict[str, Any]:
    """The JSON object in a file that an option names; - is standard input."""
    found = _json_in(file, option)
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file} must have a JSON object", param_hint=option)
    return found


def _json_in(file: str, option: str) -> Any:
    """The JSON in a file that an option names; - is standard input."""
    try:
        return json.loads(_read_standard_input() if file == "-" else Path(file).read_bytes())
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint=option) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise typer.BadParameter(f"{file} is not JSON: {error.msg} at {where}", param_hint=option) from None
    except (UnicodeDecodeError, RecursionError):
        raise typer.BadParameter(f"{file} is not JSON in UTF-8, or far too deep", param_hint=option) from None


def given(**options: Any) -> dict[str, Any]:
    """The options that were given. Raises BadParameter if none was."""
    found = {name: value for name, value in options.items() if value is not None}
    if not found:
        raise typer.BadParameter("give one of " + ", ".join(f"--{name.replace('_', '-')}" for name in options))
    return found


def pairs(given: list[str] | None) -> dict[str, str]:
    return dict(_split(one, "--metadata", "KEY=VALUE") for one in given or ())


def changes(given: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Fields with their values, from ``FIELD=JSON`` or ``FIELD=@FILE``, a file with JSON; ``@-`` is standard input."""
    changes = {}
    for name, value in (_split(one, option, "FIELD=JSON") for one in given or ()):
        if value.startswith("@"):  # which no JSON does
            changes[name] = _json_in(value.removeprefix("@"), option)
            continue
        try:
            changes[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            hint = f"the value of {name} is not JSON; a text needs its quotes: '{name}=\"…\"'; a file: {name}=@FILE"
            raise typer.BadParameter(hint, param_hint=option) from None
    return changes


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """A file to read, open while the block runs; ``-`` is standard input."""
    if file == "-":
        if sys.stdin.isatty():
            typer.echo("starter: reading from the terminal; Ctrl-D on a line of its own ends it", err=True)
        yield sys.stdin.buffer
        return
    try:
        found = Path(file).open("rb")  # noqa: SIM115 -- only an error of opening it is one of usage
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from None
    with found:
        yield found


def _split(pair: str, option: str, form: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not (name and separator):
        raise typer.BadParameter(f"must be {form}", param_hint=option)
    return name, value


def moment(given: str | None, option: str) -> datetime | None:
    """A time from ``2026-01-31T12:00Z``, or from ``2h``: that long ago. A time without a zone is local."""
    if given is None:
        return None
    try:
        if span := _span(given):
            return datetime.now().astimezone() - span
        return datetime.fromisoformat(given).astimezone(UTC).astimezone()
    except (ValueError, OverflowError):
        why = "is neither a time (2026-01-31T12:00Z) nor a length of time (90s, 30m, 2h, 7d)"
        raise typer.BadParameter(why, param_hint=option) from None


def later(given: str | None, option: str) -> datetime | None:
    """A future time from a time, or from ``2h``: that long from now."""
    span = _span(given or "")
    end = datetime.now().astimezone() + span if span else moment(given, option)
    if end is not None and end <= datetime.now().astimezone():
        raise typer.BadParameter("must be a time to come", param_hint=option)
    return end


def time_text(given: str | None, option: str) -> str | None:
    """``moment`` as RFC 3339, as it stands in a body of JSON."""
    found = moment(given, option)
    return None if found is None else found.isoformat()


def _span(given: str) -> timedelta | None:
    """The length of ``90s``, ``30m``, ``2h`` or ``7d``; None for any other text."""
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    found = re.fullmatch(r"(\d{1,6})([smhd])", given)
    return timedelta(**{units[found[2]]: int(found[1])}) if found else None


def event_position(given: str | None) -> tuple[int, int]:
    """Epoch and position of an event's id; those of the beginning if there is none."""
    from chatjobs.sse import EventId

    try:
        return EventId.parse(given or "1.0").place
    except ValueError:
        raise typer.BadParameter("must be EPOCH.POSITION, as in an event's id", param_hint="--from") from None
