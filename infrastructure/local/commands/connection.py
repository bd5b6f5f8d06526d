"""Connection settings of a command: addresses from the environment, else those of the shop that runs here.

The same commands therefore serve the local stack, a shop in containers, and two shops side by side under two prefixes.
"""

import os
from collections.abc import Mapping
from typing import NoReturn, TypeVar, overload

from pydantic import ValidationError
from pydantic_settings import SettingsError

from infrastructure.local.errors import UsageError
from infrastructure.local.state import find_root, find_running, require_running
from infrastructure.local.supervision import services
from infrastructure.process.environment import PREFIX
from infrastructure.process.environment import child_environment as environment_of
from infrastructure.process.settings import Settings, explain

S = TypeVar("S", bound=Settings)


def environment(*needed: str) -> dict[str, str]:
    """Return the shop's `HOLDFAST_…` variables.

    If the environment sets all of `needed`, only the environment counts. Otherwise a shop must run here (if none does,
    the command ends with exit status 1), and variables of the environment override those of the shop.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    if all(given.get(name) for name in needed):
        return given
    return require_running().environment() | given


@overload
def settings(*needed: str) -> Settings: ...


@overload
def settings(*needed: str, kind: type[S]) -> S: ...


def settings(*needed: str, kind: type[Settings] = Settings) -> Settings:
    """Return the shop's settings as a service with settings of this `kind` would read them.

    `needed` as for `environment`.
    """
    return _parse_settings(environment(*needed), kind)


def running_shop_settings() -> Settings:
    """Return the settings of the shop that runs here, ignoring addresses in the environment.

    If no shop runs here, the command ends with exit status 1.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    return _parse_settings(given | require_running().environment(), Settings)


def _parse_settings(variables: Mapping[str, str], kind: type[S]) -> S:
    given = {name.removeprefix(PREFIX).lower(): value for name, value in variables.items()}
    try:
        return kind.model_validate({name: value for name, value in given.items() if name in kind.model_fields})
    except (ValidationError, SettingsError) as error:
        raise UsageError(explain(error)) from None


def has_service(kind: services.ServiceType) -> bool:
    """Return whether the shop has this service; False only if the shop runs here and was started without it."""
    stack = find_running(find_root())
    if stack is None or not stack.metrics or environment("HOLDFAST_KAFKA")["HOLDFAST_KAFKA"] != stack.kafka:
        return True
    return any(name.rpartition("-")[0] == kind.name or name == kind.name for name in stack.metrics)


def child_environment(*needed: str) -> dict[str, str]:
    """Return the full environment of a child process that uses the shop, whatever its working directory."""
    return environment_of(services.python_path() | environment(*needed))


def inherited_environment() -> dict[str, str]:
    """Return the full environment of a child process that needs no shop."""
    return environment_of(services.python_path())


def exec_program(argv: list[str], environ: dict[str, str]) -> NoReturn:
    """Replace this process with another program, so that Ctrl-C, pipes and the exit status are the program's own."""
    os.execve(argv[0], argv, environ)  # noqa: S606 - the program is this Python interpreter
