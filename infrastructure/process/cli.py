"""Command line of a service: `python -m SERVICE COMMAND …`, with a coroutine function for each command.

Build the parser with `sub_commands` and `add_command`, or with `choices`. Then call `execute` with the arguments.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError

from infrastructure.observability import logs
from infrastructure.process.settings import Settings, explain

EXIT_USAGE: Final = 2
"""Exit status of a process whose settings or arguments are not usable."""

S = TypeVar("S", bound=Settings)
Command = Callable[[S, argparse.Namespace], Coroutine[Any, Any, int]]
"""Runs one command with the settings and the parsed arguments; returns the exit status."""


class _Adds(Protocol):
    """The result of `ArgumentParser.add_subparsers`, whose class is private."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


def sub_commands(program: str, description: str | None) -> tuple[argparse.ArgumentParser, _Adds]:
    """Return a parser of sub-commands, and the object to pass to `add_command` for each of them."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    return parser, parser.add_subparsers(required=True, metavar="COMMAND")


def add_command(to: _Adds, name: str, act: Command[Any], example: str) -> argparse.ArgumentParser:
    """Add the sub-command `name`, with the docstring of `act` as its help; return its parser for more arguments.

    `example` is a whole command line.
    """
    text = act.__doc__ or ""
    added = to.add_parser(name, help=text, description=text, epilog=f"example: {example}")
    added.set_defaults(act=act)
    return added


def choices(
    program: str, description: str | None, commands: Mapping[str, Command[Any]], *, text: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser with one positional argument that names a command; `text` is the argument's help.

    Options of the parser then belong to all commands.
    """

    class Choose(argparse.Action):
        def __call__(self, _: Any, namespace: argparse.Namespace, value: Any, *__: Any) -> None:
            namespace.act = commands[value]

    parser = argparse.ArgumentParser(prog=program, description=description, epilog=epilog)
    parser.add_argument("command", choices=tuple(commands), help=text, action=Choose)
    return parser


def execute(
    arguments: argparse.Namespace,
    *,
    service: str,
    settings: Callable[[], S],
) -> int:
    """Configure the logs of `service`, run the command that `arguments` names, and return the exit status."""
    act: Command[S] = arguments.act
    try:
        given = settings()
    except (ValidationError, SettingsError) as error:
        print(explain(error), file=sys.stderr)
        return EXIT_USAGE
    logs.configure(service, given)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(act(given, arguments))
