"""Table of the shop's services, and the processes that run them.

This module imports no service. A service is a module with a `run` sub-command: it reads HOLDFAST_* settings, serves
`/livez`, `/readyz` and `/metrics`, waits by itself for Kafka, PostgreSQL and Redis, and exits with status 0 within ten
seconds of a SIGTERM.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import infrastructure
from infrastructure.local import processes
from infrastructure.local.errors import UsageError, convert_os_error
from infrastructure.local.servers import probes
from infrastructure.local.servers.probes import LOOPBACK, Health
from infrastructure.process.environment import KAFKA_SECRETS, POSTGRES_SECRETS, SERVER_SECRETS, child_environment
from infrastructure.process.fork_server import ForkServer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psutil

    from infrastructure.local.state import Root
    from infrastructure.process.fork_server import ForkedProcess


@dataclass(frozen=True)
class ServiceType:
    """Type of service: a module that runs as one or more worker processes."""

    name: str
    module: str
    scalable: bool = True
    """True if the service can have several workers."""
    serves_http: bool = False
    """True if the service listens on the shop's own HTTP address."""
    port_setting: str = ""
    """Setting for the port of a service that stands for an external one; such a service has no `/metrics`."""
    has_migrations: bool = True
    """True if the service has a schema or topics of its own, and therefore a `migrate` sub-command."""
    has_audit: bool = True
    """True if the service has an `audit` sub-command."""
    secrets: frozenset[str] = SERVER_SECRETS
    """Settings of `environment.SECRETS` that the service uses; its processes receive no others.

    Without those of Kafka they receive no settings of Kafka, and without that of PostgreSQL no variables of libpq.
    """
    has_order_account: bool = False
    """True if the audit can print what the service has recorded about each order."""

    def is_installed(self) -> bool:
        """Return whether the module can be run here; the module is looked up, not imported."""
        try:
            spec = importlib.util.find_spec(self.module)
        except ModuleNotFoundError:  # the parent package is missing
            return False
        folders = (spec and spec.submodule_search_locations) or ()
        return any((Path(folder) / "__main__.py").exists() for folder in folders)


MAILBOX_MODULE = "notification_service.catcher"
"""Module of the local mailbox, which has an SMTP port in addition to its HTTP port."""
SIMULATED_MODULES = frozenset({MAILBOX_MODULE, "order_service.payment.provider"})
"""Modules that simulate external services in the local profile; the production profile does not run them."""
SERVICE_TYPES = (
    ServiceType(
        "edge",
        "rest_api",
        scalable=False,
        serves_http=True,
        has_audit=False,
        secrets=SERVER_SECRETS
        | {"HOLDFAST_REDIS_URL", "HOLDFAST_SECRET", "HOLDFAST_SECRET_PREVIOUS", "HOLDFAST_WEBHOOK_SECRET"},
    ),
    ServiceType(
        "accounts",
        "account_service",
        scalable=False,
        has_audit=False,
        secrets=SERVER_SECRETS
        | {
            "HOLDFAST_ACCOUNTS_SECRET",
            "HOLDFAST_ACCOUNTS_SECRET_PREVIOUS",
            "HOLDFAST_SECRET",
            "HOLDFAST_SECRET_PREVIOUS",
        },
    ),
    ServiceType("cart", "cart_service", secrets=KAFKA_SECRETS),
    ServiceType(
        "inventory", "inventory_service", secrets=SERVER_SECRETS | {"HOLDFAST_REDIS_URL"}, has_order_account=True
    ),
    ServiceType("orders", "order_service", has_order_account=True),
    ServiceType(
        "payment", "order_service.payment", secrets=SERVER_SECRETS | {"HOLDFAST_PROVIDER_KEY"}, has_order_account=True
    ),
    ServiceType("delivery", "order_service.delivery", has_order_account=True),
    ServiceType(
        "provider",
        "order_service.payment.provider",
        scalable=False,
        port_setting="HOLDFAST_PROVIDER_PORT",
        has_migrations=False,
        has_audit=False,
        secrets=frozenset({"HOLDFAST_PROVIDER_KEY", "HOLDFAST_WEBHOOK_SECRET"}),
    ),
    ServiceType("insights", "order_service.insights", has_audit=False),
    ServiceType("notifications", "notification_service"),
    ServiceType(
        "email",
        "notification_service.email",
        has_migrations=False,
        has_audit=False,
        secrets=POSTGRES_SECRETS | {"HOLDFAST_SMTP_URL"},
    ),
    ServiceType("sms", "notification_service.sms", has_migrations=False, has_audit=False, secrets=POSTGRES_SECRETS),
    ServiceType("push", "notification_service.push", has_migrations=False, has_audit=False),
    ServiceType("catcher", MAILBOX_MODULE, scalable=False, has_migrations=False, has_audit=False, secrets=frozenset()),
)
LATE_IMPORTS = (
    "infrastructure.messaging.topic_history",
    "infrastructure.messaging.worker",
    "psycopg_pool",
    "redis.asyncio",
    "uvicorn.lifespan.on",
)
"""Modules that services import while they run, for the fork server to import beforehand."""
ACCOUNTS_MODULE = "account_service"
"""Module that has an HTTP port for the edge in addition to its health port, and the `user` sub-command."""
SEED_MODULE = "inventory_service"
"""Module whose `seed` sub-command loads the catalogue."""


def parse_workers(option: str, kinds: tuple[ServiceType, ...] = SERVICE_TYPES) -> dict[str, int]:
    """Parse `inventory=2,cart=2` into the number of workers by service, 1 for those not named. Raises `UsageError`."""
    numbers = {kind.name: 1 for kind in kinds}
    scalable = [kind.name for kind in kinds if kind.scalable]
    for piece in filter(None, (p.strip() for p in option.split(","))):
        name, _, number = piece.partition("=")
        if name not in scalable:
            raise UsageError(
                f"--workers does not accept {name!r}: choose from {', '.join(scalable)},"
                " for example --workers inventory=2,cart=2"
            )
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 16:  # noqa: PLR2004 - of 24 partitions
            raise UsageError(f"--workers {name}= takes a number from 1 to 16, not {number!r}")
        numbers[name] = int(number)
    return numbers


def parse_only(option: str, kinds: tuple[ServiceType, ...] = SERVICE_TYPES) -> frozenset[str]:
    """Parse `edge,cart,inventory` into names of services; empty for all of them. Raises `UsageError`."""
    names = frozenset(filter(None, (p.strip() for p in option.split(","))))
    known = [kind.name for kind in kinds]
    if unknown := names.difference(known):
        raise UsageError(
            f"--only does not accept {min(unknown)!r}: choose from {', '.join(known)},"
            " for example --only edge,cart,inventory"
        )
    return names


class WorkerProcess:
    """Worker process of a service."""

    stop_signal: ClassVar[int] = signal.SIGTERM
    adoptable = False
    """False: a worker keeps no state, so one that a dead supervisor left is ended and started with current settings."""

    def __init__(self, root: Root, kind: ServiceType, name: str, port: int, settings: Mapping[str, str]) -> None:
        self.root, self.service_type, self.name, self.port, self.settings = root, kind, name, port, settings
        self.cwd = root.service_dir(name)
        self.fork_server: ForkServer | None = None
        """Where the process is forked from; `None` to start it with a Python of its own."""
        self.metrics: str | None = None if kind.port_setting else f"http://{LOOPBACK}:{port}/metrics"

    def prepare(self) -> None:
        """Create the worker's state directory. Raises `PermissionDenied` or `DiskFull`."""
        try:
            self.cwd.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise convert_os_error(error, self.cwd) from error

    def argv(self) -> list[str]:
        """Return the command that starts the worker with the Python that runs this process."""
        return [sys.executable, "-m", self.service_type.module, "run"]

    def environment(self) -> dict[str, str]:
        """Return the whole environment: the shop's settings and the worker's own, with the secrets that it uses."""
        own = {
            "HOLDFAST_REPLICA": self.name,
            "HOLDFAST_STATE_DIR": str(self.cwd),
            "HOLDFAST_HEALTH_PORT": str(self.port),
        }
        if self.service_type.port_setting:
            own[self.service_type.port_setting] = str(self.port)
        secrets = self.service_type.secrets
        given = {**self.settings, **own, **python_path()}
        return child_environment(given, secrets, libpq=not POSTGRES_SECRETS.isdisjoint(secrets))

    def start(self, log: Path) -> subprocess.Popen[bytes] | ForkedProcess:
        """Start the worker's process, forked from the fork server if there is one. Raises `OSError`."""
        environment = self.environment()
        if self.fork_server is None:
            return processes.start(self.argv(), env=environment, cwd=self.cwd, output=log)
        _, _, module, *arguments = self.argv()
        return self.fork_server.start(module, arguments, env=environment, cwd=self.cwd, output=log)

    @property
    def extra_stop_seconds(self) -> float:
        """Seconds beyond the usual time for the worker's end: none."""
        return 0.0

    def after_stop(self) -> None:
        """Do nothing: a worker leaves nothing behind."""

    def health(self) -> Health:
        """Probe the worker's `/livez` and `/readyz`."""
        return probes.service_health(self.port)

    def find_processes(self) -> list[psutil.Process]:
        """Return the running processes of this worker, including those of an earlier supervisor."""
        return [
            *processes.find_by_environment("HOLDFAST_STATE_DIR", lambda given: given == str(self.cwd)),
            *processes.find_by_title(lambda title: title.endswith(f" [{self.cwd}]")),
        ]

    def url(self) -> str:
        """Return the worker's URL."""
        return f"http://{LOOPBACK}:{self.port}"


def module_environment(module: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that a sub-command of a service may see: all but the secrets of others."""
    secrets = next((kind.secrets for kind in SERVICE_TYPES if kind.module == module), frozenset[str]())
    return child_environment({}, secrets, inherited=environ)


def python_path() -> dict[str, str]:
    """Return PYTHONPATH with the directory of the `infrastructure` package added at the end.

    In a checkout that is not installed, a child process with another working directory would otherwise find no service.
    """
    checkout = str(Path(infrastructure.__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join([p for p in given if p] + [checkout])}


def find_worker_processes(root: Root) -> list[psutil.Process]:
    """Return all running processes of any service of this root directory."""
    under = str(root.path / "run") + os.sep
    return [
        *processes.find_by_environment("HOLDFAST_STATE_DIR", lambda given: given.startswith(under)),
        *processes.find_by_title(lambda title: f" [{under}" in title and title.endswith("]")),
    ]
