"""Connection settings of a command: addresses from the environment, else those of the shop that runs here.

The same commands therefore serve the local stack, a shop in containers, and two shops side by side under two prefixes.
"""

import os
from collections.abc import Mapping
from typing import NoReturn

from infrastructure.local.state import find_root, find_running, require_running
from infrastructure.local.supervision import services
from infrastructure.process.settings import Settings

PREFIX = "HOLDFAST_"


def environment(*needed: str) -> dict[str, str]:
    """Return the shop's `HOLDFAST_…` variables.

    If the environment sets all of `needed`, only the environment counts. Otherwise a shop must run here (if none does,
    the command ends with exit status 1), and variables of the environment override those of the shop.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    if all(given.get(name) for name in needed):
        return given
    return require_running().environment() | given


def settings(*needed: str) -> Settings:
    """Return the shop's settings as one of its services would read them; `needed` as for `environment`."""
    return _parse_settings(environment(*needed))


def running_shop_settings() -> Settings:
    """Return the settings of the shop that runs here, ignoring addresses in the environment.

    If no shop runs here, the command ends with exit status 1.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    return _parse_settings(given | require_running().environment())


def _parse_settings(variables: Mapping[str, str]) -> Settings:
    given = {name.removeprefix(PREFIX).lower(): value for name, value in variables.items()}
    return Settings.model_validate({name: value for name, value in given.items() if name in Settings.model_fields})


def has_service(kind: services.ServiceType) -> bool:
    """Return whether the shop has this service; False only if the shop runs here and was started without it."""
    stack = find_running(find_root())
    if stack is None or not stack.metrics or environment("HOLDFAST_KAFKA")["HOLDFAST_KAFKA"] != stack.kafka:
        return True
    return any(name.rpartition("-")[0] == kind.name or name == kind.name for name in stack.metrics)


def child_environment(*needed: str) -> dict[str, str]:
    """Return the full environment of a child process that uses the shop, whatever its working directory."""
    return {**inherited_environment(), **environment(*needed)}


def inherited_environment() -> dict[str, str]:
    """Return the full environment of a child process that needs no shop."""
    return {**os.environ, **services.python_path()}


def exec_program(argv: list[str], environ: dict[str, str]) -> NoReturn:
    """Replace this process with another program, so that Ctrl-C, pipes and the exit status are the program's own."""
    os.execve(argv[0], argv, environ)  # noqa: S606 - the program is this Python interpreter
