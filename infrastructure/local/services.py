"""Table of the shop's services, and the processes that run them.

This module imports no service. A service is a module with a `run` sub-command: it reads HOLDFAST_* settings, serves
`/livez`, `/readyz` and `/metrics`, waits by itself for Kafka, PostgreSQL and Redis, and exits with status 0 within ten
seconds of a SIGTERM.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import infrastructure
from infrastructure.local import probes, processes
from infrastructure.local.errors import WrongUse, explain
from infrastructure.local.probes import LOOPBACK, Health

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psutil

    from infrastructure.local.state import Root


@dataclass(frozen=True)
class Kind:
    """Type of service: a module that runs as one or more worker processes."""

    name: str
    module: str
    many: bool = True
    """True if the service can have several workers."""
    front: bool = False
    """True if the service listens on the shop's own HTTP address."""
    port_setting: str = ""
    """Setting for the port of a service that stands for an external one; such a service has no `/metrics`."""
    owns: bool = True
    """True if the service has a schema or topics of its own, and therefore a `migrate` sub-command."""
    audits: bool = True
    """True if the service has an `audit` sub-command."""

    def installed(self) -> bool:
        """Return whether the module can be run here; the module is looked up, not imported."""
        try:
            spec = importlib.util.find_spec(self.module)
        except ModuleNotFoundError:  # the parent package is missing
            return False
        places = (spec and spec.submodule_search_locations) or ()
        return any((Path(place) / "__main__.py").exists() for place in places)


CATCHER = "notification_service.catcher"
"""Module of the local mailbox, which has an SMTP port in addition to its HTTP port."""
SIMULATED = frozenset({CATCHER, "order_service.payment.provider"})
"""Modules that simulate external services in the local profile; the production profile does not run them."""
KINDS = (
    Kind("edge", "rest_api", many=False, front=True, audits=False),
    Kind("cart", "cart_service"),
    Kind("inventory", "inventory_service"),
    Kind("orders", "order_service"),
    Kind("payment", "order_service.payment"),
    Kind("delivery", "order_service.delivery"),
    Kind(
        "provider",
        "order_service.payment.provider",
        many=False,
        port_setting="HOLDFAST_PROVIDER_PORT",
        owns=False,
        audits=False,
    ),
    Kind("insights", "order_service.insights", audits=False),
    Kind("notifications", "notification_service"),
    Kind("email", "notification_service.email", owns=False, audits=False),
    Kind("sms", "notification_service.sms", owns=False, audits=False),
    Kind("push", "notification_service.push", owns=False, audits=False),
    Kind("catcher", CATCHER, many=False, owns=False, audits=False),
)
SEEDER = "inventory_service"
"""Module whose `seed` sub-command loads the catalogue."""


def workers(option: str, kinds: tuple[Kind, ...] = KINDS) -> dict[str, int]:
    """Parse `inventory=2,cart=2` into the number of workers by service, 1 for those not named. Raises `WrongUse`."""
    numbers = {kind.name: 1 for kind in kinds}
    scalable = [kind.name for kind in kinds if kind.many]
    for piece in filter(None, (p.strip() for p in option.split(","))):
        name, _, number = piece.partition("=")
        if name not in scalable:
            raise WrongUse(
                f"--workers does not accept {name!r}: choose from {', '.join(scalable)},"
                " for example --workers inventory=2,cart=2"
            )
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 16:  # noqa: PLR2004 - of 24 partitions
            raise WrongUse(f"--workers {name}= takes a number from 1 to 16, not {number!r}")
        numbers[name] = int(number)
    return numbers


def only(option: str, kinds: tuple[Kind, ...] = KINDS) -> frozenset[str]:
    """Parse `edge,cart,inventory` into names of services; empty for all of them. Raises `WrongUse`."""
    names = frozenset(filter(None, (p.strip() for p in option.split(","))))
    known = [kind.name for kind in kinds]
    if unknown := names.difference(known):
        raise WrongUse(
            f"--only does not accept {min(unknown)!r}: choose from {', '.join(known)},"
            " for example --only edge,cart,inventory"
        )
    return names


class Service:
    """Worker process of a service."""

    stop_signal: ClassVar[int] = signal.SIGTERM
    adoptable = False
    """False: a worker keeps no state, so one that a dead supervisor left is ended and started with current settings."""

    def __init__(self, root: Root, kind: Kind, name: str, port: int, settings: Mapping[str, str]) -> None:
        self.root, self.kind, self.name, self.port, self.settings = root, kind, name, port, settings
        self.cwd = root.run(name)
        self.metrics: str | None = None if kind.port_setting else f"http://{LOOPBACK}:{port}/metrics"

    def prepare(self) -> None:
        """Create the worker's state directory. Raises `NoRight` or `DiskFull`."""
        try:
            self.cwd.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise explain(error, self.cwd) from error

    def argv(self) -> list[str]:
        """Return the command that starts the worker with the Python that runs this process."""
        return [sys.executable, "-m", self.kind.module, "run"]

    def environment(self) -> dict[str, str]:
        """Return the shop's settings and the worker's own, as environment variables."""
        own = {
            "HOLDFAST_REPLICA": self.name,
            "HOLDFAST_STATE_DIR": str(self.cwd),
            "HOLDFAST_HEALTH_PORT": str(self.port),
        }
        if self.kind.port_setting:
            own[self.kind.port_setting] = str(self.port)
        return {**self.settings, **own, **search_path()}

    def health(self) -> Health:
        """Probe the worker's `/livez` and `/readyz`."""
        return probes.service(self.port)

    def left(self) -> list[psutil.Process]:
        """Return the running processes of this worker, including those of an earlier supervisor."""
        return processes.by_environment("HOLDFAST_STATE_DIR", lambda given: given == str(self.cwd))

    def url(self) -> str:
        """Return the worker's URL."""
        return f"http://{LOOPBACK}:{self.port}"


def search_path() -> dict[str, str]:
    """Return PYTHONPATH with the directory of the `infrastructure` package added at the end.

    In a checkout that is not installed, a child process with another working directory would otherwise find no service.
    """
    checkout = str(Path(infrastructure.__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join([p for p in given if p] + [checkout])}


def left_behind(root: Root) -> list[psutil.Process]:
    """Return all running processes of any service of this root directory."""
    under = str(root.path / "run") + os.sep
    return processes.by_environment("HOLDFAST_STATE_DIR", lambda given: given.startswith(under))
