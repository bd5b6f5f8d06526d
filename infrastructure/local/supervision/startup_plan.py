"""Plan of one `up`: the programs to run and their addresses, decided before anything is started."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from contracts.topics import MOST_PARTITIONS, PARTITIONS
from infrastructure.local.errors import PortInUse, UsageError
from infrastructure.local.events import Event
from infrastructure.local.servers import external, port_reservations, probes
from infrastructure.local.servers.kafka import Kafka
from infrastructure.local.servers.postgres import Postgres
from infrastructure.local.servers.probes import LOOPBACK
from infrastructure.local.servers.redis import Redis
from infrastructure.local.supervision import services
from infrastructure.process.environment import FILE_SUFFIX
from infrastructure.process.loopback import resolves_to_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infrastructure.local.events import EventSink
    from infrastructure.local.servers.server import Server
    from infrastructure.local.state import Root

DEFAULT_PORTS = {"http": 8080, "kafka": 9092, "postgres": 5432, "redis": 6379}
ACCOUNTS_PORT = "accounts-http"
"""Name of the port on which the account service answers the edge."""
_HOST_SETTINGS = frozenset(
    {"HOLDFAST_ACCOUNTS_HOST", "HOLDFAST_HEALTH_HOST", "HOLDFAST_HTTP_HOST", "HOLDFAST_PROVIDER_HOST"}
)
_SERVERS: dict[str, type[Server]] = {"kafka": Kafka, "postgres": Postgres, "redis": Redis}


@dataclass(frozen=True)
class UpOptions:
    """Options of `holdfast up`."""

    workers: Mapping[str, int] = field(default_factory=dict)
    """Number of workers by service; 1 for a service that is not named."""
    limits: bool = True
    infra_only: bool = False
    only: frozenset[str] = frozenset()
    """Services to start; empty: all."""
    named_workers: frozenset[str] = frozenset()
    """Services whose number of workers the user named."""


@dataclass
class StartupPlan:
    """Programs of a shop and their addresses."""

    ports: dict[str, int]
    """Port of every local program, by name."""
    http: str
    """URL of the edge."""
    addresses: dict[str, str]
    """Addresses of `kafka`, `postgres` and `redis` for clients, with passwords."""
    servers: list[Server] = field(default_factory=list)
    """Local servers to run."""
    external: dict[str, str] = field(default_factory=dict)
    """Addresses of external servers, by name."""
    workers: list[services.WorkerProcess] = field(default_factory=list)
    """Worker processes to run."""
    seed: bool = False
    """True if the catalogue must be loaded."""
    partitions: int = PARTITIONS
    """Partitions of each keyed topic."""


def make_plan(
    root: Root, options: UpOptions, emit: EventSink, kinds: Sequence[services.ServiceType] = services.SERVICE_TYPES
) -> StartupPlan:
    """Return the plan for these options; choices that the user should know of are sent to `emit` as notes.

    Raises `PortInUse`, `ServerUnavailable`, `Unsupported` or `UsageError`.
    """
    if not options.limits and os.environ.get("HOLDFAST_PROFILE", "local") == "production":
        raise UsageError("--no-limits is not allowed in the production profile: run without it")
    _require_local_hosts()
    before = root.load()
    previous_ports: dict[str, int] = before.get("ports", {})
    plan = StartupPlan({}, "", {}, partitions=_partitions(root, before))
    for name, server_class in _SERVERS.items():
        if address := _external_address(name, before):
            external.require_usable(name, address)
            plan.external[name] = plan.addresses[name] = address
            continue
        server = server_class(root, previous_ports.get(name, DEFAULT_PORTS[name]), root.secrets())
        if isinstance(server, Kafka):
            server.progress = lambda done, total: emit(Event("jars", done=done, total=total))
        requested = os.environ.get(f"HOLDFAST_{name.upper()}_PORT", "")
        # A port held by this root's own server is usable: the process is adopted, or terminated first.
        own_server = (
            name in previous_ports and requested in ("", str(previous_ports[name])) and bool(server.find_processes())
        )
        server.port = plan.ports[name] = (
            previous_ports[name] if own_server else reserve_port(name, previous_ports, emit)
        )
        plan.servers.append(server)
        plan.addresses[name] = server.url()
    for name, number in options.workers.items():
        if number > plan.partitions:
            raise UsageError(
                f"--workers {name}={number} is more than the {plan.partitions} partitions of this shop's topics:"
                f" ask for {plan.partitions} at most, as the others would have no work"
            )
    selected = [] if options.infra_only else [kind for kind in kinds if not options.only or kind.name in options.only]
    kinds_to_run = [kind for kind in selected if _can_run(kind, emit)]
    has_edge = any(kind.serves_http for kind in kinds_to_run)
    plan.ports["http"] = (
        reserve_port("http", previous_ports, emit) if has_edge else previous_ports.get("http", DEFAULT_PORTS["http"])
    )
    plan.http = f"http://{LOOPBACK}:{plan.ports['http']}"
    workers = [
        (kind, f"{kind.name}-{number}" if kind.scalable else kind.name)
        for kind in kinds_to_run
        for number in range(1, (options.workers.get(kind.name, 1) if kind.scalable else 1) + 1)
    ]
    ports = [
        plan.ports["http"] if kind.serves_http else _reserve_health_port(name, previous_ports, plan.ports)
        for kind, name in workers
    ]
    if any(kind.module == services.MAILBOX_MODULE for kind in kinds_to_run):
        _reserve_health_port("smtp", previous_ports, plan.ports)
    if any(kind.module == services.ACCOUNTS_MODULE for kind in kinds_to_run):
        _reserve_health_port(ACCOUNTS_PORT, previous_ports, plan.ports)
    settings = _service_settings(root, plan, limits=options.limits)
    for (kind, name), port in zip(workers, ports, strict=True):
        plan.workers.append(services.WorkerProcess(root, kind, name, port, settings))
    loaded = catalogue_database(plan) == before.get("seeded")
    plan.seed = not loaded and any(kind.module == services.SEED_MODULE for kind in kinds_to_run)
    return plan


def _require_local_hosts() -> None:
    """Raise `UsageError` if a setting asks a process to listen on more than this machine."""
    for name, host in os.environ.items():
        if name.upper() in _HOST_SETTINGS and not resolves_to_loopback(host):
            raise UsageError(
                f"{name} is {host!r}, and `holdfast up` listens on this machine only: unset it, and let a proxy with"
                " TLS forward requests, or run the services yourself with HOLDFAST_PROFILE=production, which requires"
                " secrets of your own and TLS to the servers (SECURITY.md)"
            )


def catalogue_database(plan: StartupPlan) -> str:
    """Return the identity of the database that the catalogue is loaded into: an external address, or `ours`."""
    return external.without_password("postgres", plan.external["postgres"]) if "postgres" in plan.external else "ours"


def reserve_port(name: str, previous_ports: Mapping[str, int], emit: EventSink) -> int:
    """Reserve and return a port: HOLDFAST_<NAME>_PORT, else the previous port, else the default, else a free one.

    Raises `PortInUse` if the port in HOLDFAST_<NAME>_PORT is in use, `UsageError` if the variable is not a port.
    """
    variable = f"HOLDFAST_{name.upper()}_PORT"
    if requested := os.environ.get(variable):
        if not requested.isascii() or not requested.isdigit() or not 0 < int(requested) < 1 << 16:
            raise UsageError(f"{variable} must be a port (1 to 65535), not {requested!r}")
        if not port_reservations.reserve_if_free(int(requested)):
            raise PortInUse(
                f"port {requested} is taken by {probes.port_owner(int(requested))}: stop that program, or choose"
                f" another with {variable}, or unset it to get a free one"
            )
        return int(requested)
    previous, default = previous_ports.get(name, DEFAULT_PORTS[name]), DEFAULT_PORTS[name]
    if port_reservations.reserve_if_free(previous):
        return previous
    port = (
        default
        if default != previous and port_reservations.reserve_if_free(default)
        else port_reservations.reserve_free_port()
    )
    emit(Event("note", text=f"port {previous} is taken by {probes.port_owner(previous)}: {name} uses {port}"))
    return port


def _reserve_health_port(name: str, previous_ports: Mapping[str, int], ports: dict[str, int]) -> int:
    """Reserve the previous port, else a free one; record it in `ports` and return it."""
    port = previous_ports.get(name, 0)
    usable = port and port not in ports.values() and port_reservations.reserve_if_free(port)
    ports[name] = port if usable else port_reservations.reserve_free_port()
    return ports[name]


def _partitions(root: Root, before: Mapping[str, Any]) -> int:
    """Return the number that the topics of this root were made with, else HOLDFAST_PARTITIONS, else the default."""
    requested = os.environ.get("HOLDFAST_PARTITIONS", "")
    if requested and not (requested.isascii() and requested.isdigit() and 1 <= int(requested) <= MOST_PARTITIONS):
        raise UsageError(f"HOLDFAST_PARTITIONS must be a number from 1 to {MOST_PARTITIONS}, not {requested!r}")
    partitions = int(before.get("partitions", requested or PARTITIONS))
    if requested and int(requested) != partitions:
        raise UsageError(
            f"HOLDFAST_PARTITIONS is {requested}, and the topics of this shop have {partitions} partitions, which"
            f" cannot change: unset it, or remove {root.path} and start again"
        )
    return partitions


def _external_address(name: str, before: Mapping[str, Any]) -> str | None:
    """Return the address of an external server; `None` if unset, or if it is this root's own (from `holdfast env`)."""
    address = os.environ.get(external.ADDRESS_VARIABLES[name])
    return address if address and not (address == before.get(name) and name in before.get("ports", {})) else None


def _can_run(kind: services.ServiceType, emit: EventSink) -> bool:
    if kind.module in services.SIMULATED_MODULES and os.environ.get("HOLDFAST_PROFILE") == "production":
        return False  # production delivers real mails and takes real payments
    if kind.is_installed():
        return True
    emit(Event("note", text=f"{kind.name} is not started: the module {kind.module} is not installed"))
    return False


def _service_settings(root: Root, plan: StartupPlan, *, limits: bool) -> dict[str, str]:
    secrets = root.secrets()
    # A real provider has given its own key and webhook secret; they stay as the environment has them.
    provider = {
        name: value
        for name, value in (
            ("HOLDFAST_PROVIDER_KEY", secrets.provider_key),
            ("HOLDFAST_WEBHOOK_SECRET", secrets.webhooks),
        )
        if "provider" in plan.ports or not (os.environ.get(name) or os.environ.get(name + FILE_SUFFIX))
    }
    if "provider" in plan.ports:
        provider |= {
            "HOLDFAST_PROVIDER_URL": f"http://{LOOPBACK}:{plan.ports['provider']}",
            "HOLDFAST_PROVIDER_FILE": str(root.service_dir("provider") / "provider.sqlite"),
            "HOLDFAST_WEBHOOK_URL": f"{plan.http}/v1/webhooks/payments",
        }
    mails = {}
    if "smtp" in plan.ports:
        caught = f"smtp://{LOOPBACK}:{plan.ports['smtp']}"
        mails = {
            "HOLDFAST_CATCHER_SMTP_PORT": str(plan.ports["smtp"]),
            "HOLDFAST_MAILS_URL": f"http://{LOOPBACK}:{plan.ports['catcher']}/",
            "HOLDFAST_SMTP_URL": os.environ.get("HOLDFAST_SMTP_URL", caught),
        }
    accounts = {"HOLDFAST_ACCOUNTS_SECRET": secrets.accounts}
    if ACCOUNTS_PORT in plan.ports:
        accounts |= {
            "HOLDFAST_ACCOUNTS_PORT": str(plan.ports[ACCOUNTS_PORT]),
            "HOLDFAST_ACCOUNTS_URL": f"http://{LOOPBACK}:{plan.ports[ACCOUNTS_PORT]}",
        }
    return {
        "HOLDFAST_KAFKA": plan.addresses["kafka"],
        "HOLDFAST_POSTGRES_URL": plan.addresses["postgres"],
        "HOLDFAST_REDIS_URL": plan.addresses["redis"],
        "HOLDFAST_HTTP_HOST": LOOPBACK,
        "HOLDFAST_HTTP_PORT": str(plan.ports["http"]),
        "HOLDFAST_HTTP_URL": plan.http,
        "HOLDFAST_SECRET": secrets.signing,
        **provider,
        **mails,
        **accounts,
        "HOLDFAST_PROFILE": os.environ.get("HOLDFAST_PROFILE", "local"),
        "HOLDFAST_PREFIX": os.environ.get("HOLDFAST_PREFIX", ""),
        "HOLDFAST_LIMITS": "on" if limits else "off",
        "HOLDFAST_PARTITIONS": str(plan.partitions),
        "HOLDFAST_ROOT": str(root.path),
    }
