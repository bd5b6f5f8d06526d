"""How a command reaches the shop: by the environment's addresses, else by those of the shop that runs here.

So the same commands serve the local stack, a shop of containers, and two shops side by side under two prefixes.
"""

import os
from collections.abc import Mapping
from typing import NoReturn

from infrastructure.local import services
from infrastructure.local.state import find_root, find_running, running
from infrastructure.settings import Settings

PREFIX = "HOLDFAST_"


def environment(*needed: str) -> dict[str, str]:
    """The shop's `HOLDFAST_…` variables.

    When the environment has all of `needed`, it is believed; else a shop must run here (without one the command ends
    with exit status 1), and what the environment has still comes first.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    if all(given.get(name) for name in needed):
        return given
    return running().environment() | given


def settings(*needed: str) -> Settings:
    """The shop's settings as a service of it would read them."""
    return _read(environment(*needed))


def here() -> Settings:
    """The settings of the shop that runs here, whatever addresses the environment has; without one exit status 1."""
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    return _read(given | running().environment())


def _read(variables: Mapping[str, str]) -> Settings:
    given = {name.removeprefix(PREFIX).lower(): value for name, value in variables.items()}
    return Settings.model_validate({name: value for name, value in given.items() if name in Settings.model_fields})


def has(kind: services.Kind) -> bool:
    """Whether the shop has this service: not when it runs here with some services and without this one."""
    stack = find_running(find_root())
    if stack is None or not stack.metrics or environment("HOLDFAST_KAFKA")["HOLDFAST_KAFKA"] != stack.kafka:
        return True
    return any(name.rpartition("-")[0] == kind.name or name == kind.name for name in stack.metrics)


def child_environment(*needed: str) -> dict[str, str]:
    """The whole environment of a process that works for the shop, from whatever directory."""
    return {**inherited(), **environment(*needed)}


def inherited() -> dict[str, str]:
    """The whole environment of a process that needs no shop."""
    return {**os.environ, **services.search_path()}


def become(argv: list[str], environ: dict[str, str]) -> NoReturn:
    """Go on as another program, so that Ctrl-C, pipes and the exit status are its own."""
    os.execve(argv[0], argv, environ)  # noqa: S606 - the program is our own interpreter
