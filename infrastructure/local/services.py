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

    def installed(self) -> bool:
        """Whether its module can be run here; looked up, not imported."""
        spec = importlib.util.find_spec(self.module)
        places = (spec and spec.submodule_search_locations) or ()
        return any((Path(place) / "__main__.py").exists() for place in places)


KINDS = (
    Kind("edge", "rest_api", many=False),
    Kind("cart", "cart_service"),
    Kind("inventory", "inventory_service"),
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


class Service:
    """One worker of one service."""

    stop_signal: ClassVar[int] = signal.SIGTERM
    adoptable = False
    """It holds nothing: one that a dead supervisor left is ended and started with today's settings."""

    def __init__(self, root: Root, kind: Kind, name: str, port: int, settings: Mapping[str, str]) -> None:
        self.root, self.kind, self.name, self.port, self.settings = root, kind, name, port, settings
        self.cwd = root.run(name)
        self.metrics: str | None = f"http://{LOOPBACK}:{port}/metrics"

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
