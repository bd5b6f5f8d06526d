"""The shop's services as processes: the one table of them, and what each is told.

Nothing here imports a service. One is a module with a `run` sub-command that reads HOLDFAST_* settings,
serves `/livez`, `/readyz` and `/metrics`, waits by itself for Kafka, PostgreSQL and Redis, and ends with
status 0 within ten seconds of a SIGTERM.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from infrastructure.local import probes, processes
from infrastructure.local.errors import WrongUse, explain
from infrastructure.local.probes import LOOPBACK, Health

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psutil

    from infrastructure.local.state import Root


@dataclass(frozen=True)
class Kind:
    """One service of the shop: its name, its module, and whether it can have several workers."""

    name: str
    module: str
    many: bool = True
    front: bool = False
    """Whether it answers on the shop's own HTTP address."""
    port_setting: str = ""
    """What it is told its port by, when it is a stranger's service that has no metrics of ours."""
    owns: bool = True
    """Whether it has a schema or topics of its own, and so a `migrate`."""
    audits: bool = True
    """Whether it has an `audit`."""

    def installed(self) -> bool:
        """Whether its module can be run here; looked up, not imported."""
        try:
            spec = importlib.util.find_spec(self.module)
        except ModuleNotFoundError:  # not even the package that it is a part of
            return False
        places = (spec and spec.submodule_search_locations) or ()
        return any((Path(place) / "__main__.py").exists() for place in places)


CATCHER = "notification_service.catcher"
"""The local mail catcher: it has an SMTP port beside its page."""
SIMULATED = frozenset({CATCHER, "order_service.payment.provider"})
"""What stands for somebody else in the local profile alone."""
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
"""The module whose `seed` sub-command loads the catalogue."""


def workers(wish: str, kinds: tuple[Kind, ...] = KINDS) -> dict[str, int]:
    """`inventory=2,cart=2` as numbers of workers, 1 for those not named. Raises WrongUse."""
    numbers = {kind.name: 1 for kind in kinds}
    many = [kind.name for kind in kinds if kind.many]
    for piece in filter(None, (p.strip() for p in wish.split(","))):
        name, _, number = piece.partition("=")
        if name not in many:
            raise WrongUse(f"--workers knows {', '.join(many)}, not {name!r}: for example --workers inventory=2,cart=2")
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 16:  # noqa: PLR2004 - of 24 partitions
            raise WrongUse(f"--workers {name}= takes a number from 1 to 16, not {number!r}")
        numbers[name] = int(number)
    return numbers


def only(wish: str, kinds: tuple[Kind, ...] = KINDS) -> frozenset[str]:
    """`edge,cart,inventory` as names of services; empty for all of them. Raises WrongUse."""
    names = frozenset(filter(None, (p.strip() for p in wish.split(","))))
    known = [kind.name for kind in kinds]
    if unknown := names.difference(known):
        raise WrongUse(f"--only knows {', '.join(known)}, not {min(unknown)!r}: for example --only edge,cart,inventory")
    return names


class Service:
    """One worker of one service."""

    stop_signal: ClassVar[int] = signal.SIGTERM
    adoptable = False
    """It holds nothing: one that a dead supervisor left is ended and started with today's settings."""

    def __init__(self, root: Root, kind: Kind, name: str, port: int, settings: Mapping[str, str]) -> None:
        self.root, self.kind, self.name, self.port, self.settings = root, kind, name, port, settings
        self.cwd = root.run(name)
        self.metrics: str | None = None if kind.port_setting else f"http://{LOOPBACK}:{port}/metrics"

    def prepare(self) -> None:
        """Make its state directory. Raises NoRight or DiskFull."""
        try:
            self.cwd.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise explain(error, self.cwd) from error

    def argv(self) -> list[str]:
        """The same Python that runs us."""
        return [sys.executable, "-m", self.kind.module, "run"]

    def environment(self) -> dict[str, str]:
        """The shop's settings and its own."""
        own = {
            "HOLDFAST_REPLICA": self.name,
            "HOLDFAST_STATE_DIR": str(self.cwd),
            "HOLDFAST_HEALTH_PORT": str(self.port),
        }
        if self.kind.port_setting:
            own[self.kind.port_setting] = str(self.port)
        return {**self.settings, **own, **search_path()}

    def health(self) -> Health:
        """`/livez` and `/readyz`."""
        return probes.service(self.port)

    def left(self) -> list[psutil.Process]:
        """Its processes that run now, whoever started them."""
        return processes.by_environment("HOLDFAST_STATE_DIR", lambda given: given == str(self.cwd))

    def url(self) -> str:
        """Where it answers."""
        return f"http://{LOOPBACK}:{self.port}"


def search_path() -> dict[str, str]:
    """PYTHONPATH with the directory that holds us last.

    From a checkout that is not installed, a child with another working directory would find no service.
    """
    ours = str(Path(__file__).resolve().parents[2])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join([p for p in given if p] + [ours])}


def left_behind(root: Root) -> list[psutil.Process]:
    """All processes of any service of this root."""
    under = str(root.path / "run") + os.sep
    return processes.by_environment("HOLDFAST_STATE_DIR", lambda given: given.startswith(under))
