"""What one `up` will run, and on which addresses: decided before anything is started."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infrastructure.local import claims, outside, probes, services
from infrastructure.local.errors import PortTaken, WrongUse
from infrastructure.local.events import Event
from infrastructure.local.kafka import Kafka
from infrastructure.local.postgres import Postgres
from infrastructure.local.probes import LOOPBACK
from infrastructure.local.redis import Redis
from infrastructure.topics import MOST_PARTITIONS, PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infrastructure.local.events import Tell
    from infrastructure.local.parts import Part
    from infrastructure.local.state import Root

PREFERRED = {"http": 8080, "kafka": 9092, "postgres": 5432, "redis": 6379}
_PARTS: dict[str, type[Part]] = {"kafka": Kafka, "postgres": Postgres, "redis": Redis}


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    workers: Mapping[str, int] = field(default_factory=dict)
    limits: bool = True
    infra_only: bool = False
    only: frozenset[str] = frozenset()
    """The services to start; empty: all."""


@dataclass
class Plan:
    """Who runs where."""

    ports: dict[str, int]
    http: str
    addresses: dict[str, str]
    """`kafka`, `postgres`, `redis`: as a client needs them, with passwords."""
    parts: list[Part] = field(default_factory=list)
    outside: dict[str, str] = field(default_factory=dict)
    workers: list[services.Service] = field(default_factory=list)
    seed: bool = False
    partitions: int = PARTITIONS
    """Partitions of each keyed topic."""


def make(root: Root, options: Options, tell: Tell, kinds: Sequence[services.Kind] = services.KINDS) -> Plan:
    """Decide. Raises PortTaken, NoAnswer, Unsupported or WrongUse; notes what else is worth knowing."""
    if not options.limits and os.environ.get("HOLDFAST_PROFILE", "local") == "production":
        raise WrongUse("the production profile keeps its limits: leave --no-limits out")
    before = root.load()
    kept: dict[str, int] = before.get("ports", {})
    plan = Plan({}, "", {}, partitions=_partitions(root, before))
    for name, part_of in _PARTS.items():
        if address := _foreign(name, before):
            outside.check(name, address)
            plan.outside[name] = plan.addresses[name] = address
            continue
        part = part_of(root, kept.get(name, PREFERRED[name]), root.secrets())
        if isinstance(part, Kafka):
            part.progress = lambda done, total: tell(Event("jars", done=done, total=total))
        asked = os.environ.get(f"HOLDFAST_{name.upper()}_PORT", "")
        # A port that our own process holds is not taken: it is taken over, or ended first.
        ours = name in kept and asked in ("", str(kept[name])) and bool(part.left())
        part.port = plan.ports[name] = kept[name] if ours else choose(name, kept, tell)
        plan.parts.append(part)
        plan.addresses[name] = part.url()
    for name, number in options.workers.items():
        if number > plan.partitions:
            raise WrongUse(
                f"--workers {name}={number} is more than the {plan.partitions} partitions of this shop's topics:"
                f" ask for {plan.partitions} at most, as the others would have no work"
            )
    asked_for = [] if options.infra_only else [kind for kind in kinds if not options.only or kind.name in options.only]
    wanted = [kind for kind in asked_for if _there(kind, tell)]
    front = any(kind.front for kind in wanted)
    plan.ports["http"] = choose("http", kept, tell) if front else kept.get("http", PREFERRED["http"])
    plan.http = f"http://{LOOPBACK}:{plan.ports['http']}"
    workers = [
        (kind, f"{kind.name}-{number}" if kind.many else kind.name)
        for kind in wanted
        for number in range(1, (options.workers.get(kind.name, 1) if kind.many else 1) + 1)
    ]
    ports = [plan.ports["http"] if kind.front else _health_port(name, kept, plan.ports) for kind, name in workers]
    if any(kind.module == services.CATCHER for kind in wanted):
        _health_port("smtp", kept, plan.ports)
    settings = _settings(root, plan, limits=options.limits)
    for (kind, name), port in zip(workers, ports, strict=True):
        plan.workers.append(services.Service(root, kind, name, port, settings))
    loaded = seed_mark(plan) == before.get("seeded")
    plan.seed = not loaded and any(kind.module == services.SEEDER for kind in wanted)
    return plan


def seed_mark(plan: Plan) -> str:
    """Which database the catalogue was loaded into."""
    return outside.plain("postgres", plan.outside["postgres"]) if "postgres" in plan.outside else "ours"


def choose(name: str, kept: Mapping[str, int], tell: Tell) -> int:
    """The port asked for in HOLDFAST_<NAME>_PORT, else the one used before, else the usual, else a free one."""
    variable = f"HOLDFAST_{name.upper()}_PORT"
    if asked := os.environ.get(variable):
        if not asked.isascii() or not asked.isdigit() or not 0 < int(asked) < 1 << 16:
            raise WrongUse(f"{variable} must be a port, not {asked!r}")
        if not claims.available(int(asked)):
            raise PortTaken(
                f"port {asked} is taken by {probes.holder(int(asked))}: stop that program, or choose another"
                f" with {variable}, or unset it to get a free one"
            )
        return int(asked)
    first = kept.get(name, PREFERRED[name])
    if claims.available(first):
        return first
    second = PREFERRED[name]
    port = second if second != first and claims.available(second) else claims.free_port()
    tell(Event("note", text=f"port {first} is taken by {probes.holder(first)}: {name} uses {port}"))
    return port


def _health_port(name: str, kept: Mapping[str, int], given: dict[str, int]) -> int:
    """The port used before, else a free one."""
    port = kept.get(name, 0)
    usable = port and port not in given.values() and claims.available(port)
    given[name] = port if usable else claims.free_port()
    return given[name]


def _partitions(root: Root, before: Mapping[str, Any]) -> int:
    """Return the number that the topics of this root were made with, else HOLDFAST_PARTITIONS, else the default."""
    asked = os.environ.get("HOLDFAST_PARTITIONS", "")
    if asked and not (asked.isascii() and asked.isdigit() and 1 <= int(asked) <= MOST_PARTITIONS):
        raise WrongUse(f"HOLDFAST_PARTITIONS must be a number from 1 to {MOST_PARTITIONS}, not {asked!r}")
    kept = int(before.get("partitions", asked or PARTITIONS))
    if asked and int(asked) != kept:
        raise WrongUse(
            f"HOLDFAST_PARTITIONS is {asked}, and the topics of this shop have {kept} partitions, which cannot change:"
            f" unset it, or remove {root.path} and start again"
        )
    return kept


def _foreign(name: str, before: Mapping[str, Any]) -> str | None:
    """The address of somebody else's server, None when unset or when it is our own from `holdfast env`."""
    given = os.environ.get(outside.VARIABLES[name])
    return given if given and not (given == before.get(name) and name in before.get("ports", {})) else None


def _there(kind: services.Kind, tell: Tell) -> bool:
    if kind.module in services.SIMULATED and os.environ.get("HOLDFAST_PROFILE") == "production":
        return False  # such a shop delivers its mails, and is really paid
    if kind.installed():
        return True
    tell(Event("note", text=f"{kind.name} is left out: the module {kind.module} is not installed here"))
    return False


def _settings(root: Root, plan: Plan, *, limits: bool) -> dict[str, str]:
    secrets, provider = root.secrets(), {}
    if "provider" in plan.ports:
        provider = {
            "HOLDFAST_PROVIDER_URL": f"http://{LOOPBACK}:{plan.ports['provider']}",
            "HOLDFAST_PROVIDER_FILE": str(root.run("provider") / "provider.sqlite"),
            "HOLDFAST_WEBHOOK_URL": f"{plan.http}/v1/webhooks/payments",
        }
    mails = {}
    if "smtp" in plan.ports:
        caught = f"smtp://{LOOPBACK}:{plan.ports['smtp']}"
        mails = {
            "HOLDFAST_CATCHER_SMTP_PORT": str(plan.ports["smtp"]),
            "HOLDFAST_SMTP_URL": os.environ.get("HOLDFAST_SMTP_URL", caught),
        }
    return {
        "HOLDFAST_KAFKA": plan.addresses["kafka"],
        "HOLDFAST_POSTGRES_URL": plan.addresses["postgres"],
        "HOLDFAST_REDIS_URL": plan.addresses["redis"],
        "HOLDFAST_HTTP_HOST": LOOPBACK,
        "HOLDFAST_HTTP_PORT": str(plan.ports["http"]),
        "HOLDFAST_HTTP_URL": plan.http,
        "HOLDFAST_SECRET": secrets.signing,
        "HOLDFAST_WEBHOOK_SECRET": secrets.signing,
        **provider,
        **mails,
        "HOLDFAST_PROFILE": os.environ.get("HOLDFAST_PROFILE", "local"),
        "HOLDFAST_PREFIX": os.environ.get("HOLDFAST_PREFIX", ""),
        "HOLDFAST_LIMITS": "on" if limits else "off",
        "HOLDFAST_PARTITIONS": str(plan.partitions),
        "HOLDFAST_ROOT": str(root.path),
    }
