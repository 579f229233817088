"""Groups of commands with plain help that fits the screen, and the exit codes."""

from __future__ import annotations

from collections.abc import Callable
from shutil import get_terminal_size
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

OK, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
F = TypeVar("F", bound=Callable[..., Any])
WIDEST = 80


class Commands(TyperGroup):
    """A group of commands that prints its help, and succeeds, if no command is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            typer.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)


class LaneCommands(Commands):
    """Commands on lanes: without one they are listed, and after the name of a lane its limits are set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] == "--json":
            args = ["list", *args]
        elif ":" in args[0]:
            args = ["set", *args]
        return super().parse_args(ctx, args)


class EndpointCommands(Commands):
    """Commands on endpoints: without one they are listed, or one is enabled."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """A command whose usage names a required argument without typer's braces around it."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class CommandLine(typer.Typer):
    """A typer application whose commands are of the class Command."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        return super().command(name, cls=Command, **options)


def group(help_text: str, cls: type[Commands] = Commands, **options: Any) -> CommandLine:
    return CommandLine(
        cls=cls,
        help=help_text,
        rich_markup_mode=None,  # plain help is faster, and its paragraphs fit the screen
        suggest_commands=False,  # cli/usage.py suggests them
        context_settings={
            "help_option_names": ["-h", "--help"],
            "terminal_width": min(get_terminal_size().columns, WIDEST),  # typer's own is 50 at least
        },
        **options,
    )
