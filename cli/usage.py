"""The error of a command line or a request as one plain sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator

import typer
from pydantic import ValidationError
from typer._click.core import Command, Context  # typer exports none of these, and pins their version
from typer._click.exceptions import BadOptionUsage, MissingParameter, NoSuchOption, UsageError
from typer.core import TyperGroup, TyperOption
from typer.exceptions import TyperException

from chatjobs.errors import ChatJobsError, InvalidRequest, Problem
from chatjobs.validation import choice, did_you_mean, reason, resembling

PREDICATE = re.compile(r"(must|may|is|are|has|have|needs|takes|cannot|goes)\b")
"""The beginning of a message that continues a sentence which starts with a name."""
NO_COMMAND = re.compile(r"No such command (['\"])(.*)\1\.?")
EXTRA_ARGUMENTS = re.compile(r"Got unexpected extra argument\(s\) \((.*)\)", re.DOTALL)


def sentence(error: ChatJobsError | TyperException) -> str:
    """One sentence, without a library's words, and with a suggestion for a name that is misspelt."""
    match error:
        case InvalidRequest():
            return "; ".join(map(_problem, error.problems))
        case ChatJobsError():
            return error.message
        case NoSuchOption():
            return _no_such_option(error)
        case MissingParameter():
            return _missing(error)
        case typer.BadParameter():
            return _bad_value(error)
        case BadOptionUsage():
            takes_none = "does not take" in error.message
            return f"{error.option_name} {'takes no value' if takes_none else 'needs a value'}"
        case UsageError():
            return _usage(error)
        case _:
            return error.format_message()


def named(name: str, why: str) -> str:
    """``--limit must be a whole number``; ``--file: x.json has no JSON``."""
    return f"{name} {why}" if PREDICATE.match(why) else f"{name}: {why}"


def _problem(found: Problem) -> str:
    """A problem with its JSON pointer written as ``messages[0].content``; that of a line of a file names it itself."""
    if found.pointer.startswith("/lines/"):
        return found.message
    steps = [step.replace("~1", "/").replace("~0", "~") for step in found.pointer.split("/")[1:]]
    path = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps).removeprefix(".")
    return named(path, found.message) if path else found.message


def _no_such_option(error: NoSuchOption) -> str:
    given, command = error.option_name, error.ctx.command if error.ctx else None
    if isinstance(command, TyperGroup) and (owner := _command_with(command, given)):
        return f"{given} goes after the command: {error.ctx.command_path if error.ctx else ''} {owner} {given}"
    return f"No such option: {given}{did_you_mean(given, _options(command, error.ctx))}"


def _command_with(group: TyperGroup, option: str) -> str | None:
    """The first command of a group that has the option."""
    return next((name for name, command in group.commands.items() if option in _options(command, None)), None)


def _options(command: Command | None, ctx: Context | None) -> list[str]:
    def all_of() -> Iterator[str]:
        for parameter in command.params if command else ():
            yield from (one for one in (*parameter.opts, *parameter.secondary_opts) if one.startswith("--"))

    return [*all_of(), *(("--help",) if ctx else ())]


def _missing(error: MissingParameter) -> str:
    parameter, ctx = error.param, error.ctx
    name = (getattr(parameter, "metavar", None) or str(parameter.name).upper()) if parameter else "An argument"
    usage = " ".join([ctx.command_path, *ctx.command.collect_usage_pieces(ctx)]) if ctx else ""
    return f"{name} is missing{f'; usage: {usage}' if usage else ''}"


def _bad_value(error: typer.BadParameter) -> str:
    hint = error.param_hint or (error.param.get_error_hint() if error.param else None)
    name = (hint if isinstance(hint, str) else " ".join(hint or ())).replace("'", "")
    why = _why(error)
    return named(name, why) if name else why


def _why(error: typer.BadParameter) -> str:
    if not isinstance(error.__cause__, ValidationError):
        return error.message
    first = error.__cause__.errors(include_url=False)[0]
    choices = error.param.type_descriptor.choices if error.param else None
    if choices:
        return choice([str(one) for one in choices], str(first["input"]))
    return reason(first)


def _usage(error: UsageError) -> str:
    command = error.ctx.command if error.ctx else None
    if (found := NO_COMMAND.fullmatch(error.message)) and isinstance(command, TyperGroup):
        return f"No such command: {found[2]}{did_you_mean(found[2], command.commands)}"
    if found := EXTRA_ARGUMENTS.fullmatch(error.message):
        prompts = command is not None and any(one.name == "prompt" for one in command.params)
        hint = "; put a prompt of several words in quotes" if prompts else _as_option(found[1], command)
        return f"Unexpected argument: {found[1]}{hint}"
    return error.format_message().rstrip(".")


def _as_option(word: str, command: Command | None) -> str:
    """``; did you mean --status failed?`` for a word that is a value of an option; else nothing."""
    for parameter in command.params if command else ():
        known = parameter.type_descriptor.choices if isinstance(parameter, TyperOption) else None
        choices = [str(one) for one in known or ()]
        if found := resembling(word, choices):
            return f"; did you mean {parameter.opts[0]} {found}?"
    return ""
