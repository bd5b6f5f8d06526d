"""Kafka, PostgreSQL and Redis for tests: those of the local stack, containers, or servers of yours.

HOLDFAST_TEST_SERVERS chooses: `local` (the default), `containers` (testcontainers), or `external`
(HOLDFAST_KAFKA, HOLDFAST_POSTGRES_URL and HOLDFAST_REDIS_URL name them). No test knows which it has.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from infrastructure.local import processes
from infrastructure.local.servers import external, port_reservations
from infrastructure.local.servers.kafka import Kafka
from infrastructure.local.servers.postgres import Postgres
from infrastructure.local.servers.redis import Redis
from infrastructure.local.state import Root
from infrastructure.local.supervision.supervisor import last_lines
from infrastructure.messaging.broker import partition_of
from infrastructure.process.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infrastructure.local.servers.server import Server


PARTITIONS: Final = 4
"""Partitions of each keyed topic of the tests' shops: enough to share, and cheap to make and to remove."""
MANY_PARTITIONS: Final = 8
"""For a test with up to eight replicas of one kind: one without a partition would have no work."""


def partition(key: bytes) -> int:
    """Return the partition of `key` on every keyed topic of the tests' shops."""
    return partition_of(key, PARTITIONS)


@dataclass(frozen=True)
class Servers:
    """Where the servers are, as HOLDFAST_KAFKA, HOLDFAST_POSTGRES_URL and HOLDFAST_REDIS_URL want it."""

    kafka: str
    postgres_url: str
    redis_url: str

    def environment(self) -> dict[str, str]:
        """For a service that a test starts as a process."""
        return {
            "HOLDFAST_KAFKA": self.kafka,
            "HOLDFAST_POSTGRES_URL": self.postgres_url,
            "HOLDFAST_REDIS_URL": self.redis_url,
            "HOLDFAST_PARTITIONS": str(PARTITIONS),
        }

    def settings(self, prefix: str = "", **more: Any) -> Settings:
        """Return the settings of a shop of one test's own on these servers, with a new prefix if none is given."""
        return Settings(
            kafka=self.kafka,
            postgres_url=self.postgres_url,
            redis_url=self.redis_url,
            prefix=prefix or f"t{secrets.token_hex(3)}.",
            **{"partitions": PARTITIONS, **more},
        )


@contextlib.contextmanager
def start(root: Path) -> Iterator[Servers]:
    """The servers that HOLDFAST_TEST_SERVERS chooses; local ones live in `root`, an empty directory."""
    match os.environ.get("HOLDFAST_TEST_SERVERS", "local"):
        case "local":
            with start_local(root) as servers:
                yield servers
        case "external":
            for name, variable in external.ADDRESS_VARIABLES.items():
                external.require_usable(name, os.environ[variable])
            yield Servers(*(os.environ[variable] for variable in external.ADDRESS_VARIABLES.values()))
        case "containers":
            with start_containers() as servers:
                yield servers
        case other:
            message = f"HOLDFAST_TEST_SERVERS is local, external or containers, not {other!r}"
            raise ValueError(message)


@contextlib.contextmanager
def start_local(root: Path) -> Iterator[Servers]:
    """The local stack's three servers on free ports, with their data in `root`; gone afterwards.

    PostgreSQL does not wait for the disk: a test outlives no power failure, and its commits are then as
    fast as memory. Killing a process loses nothing even so (the pages are the kernel's by then).
    """
    parts = local_parts(root)
    started: list[subprocess.Popen[bytes]] = []
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(lambda part: bring(part, started), parts))
        yield Servers(*(part.url() for part in parts))
    finally:
        # Nobody reads what they leave: no polite end.
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes.kill(psutil.Process(child.pid))
            child.wait()


def local_parts(root: Path) -> list[Server]:
    """The three servers as they will be in `root`, on free ports; none is started."""
    place = Root(root.resolve())
    place.create()
    secrets, port = place.secrets(), port_reservations.reserve_free_port
    unsynced = ("-c", "fsync=off", "-c", "full_page_writes=off")
    return [
        Kafka(place, port(), secrets),
        Postgres(place, port(), secrets, options=unsynced),
        Redis(place, port(), secrets),
    ]


def bring(part: Server, started: list[subprocess.Popen[bytes]], patience: float = 60.0) -> None:
    """Start a server, again perhaps, and return when it answers; its process is added to `started`."""
    part.prepare()
    log = part.root.log_file(part.name)
    with log.open("ab") as out:
        child = subprocess.Popen(
            part.argv(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=part.cwd, start_new_session=True
        )
    started.append(child)
    end = time.monotonic() + patience
    while not part.is_answering():
        if child.poll() is not None or time.monotonic() > end:
            message = f"{part.name} did not start: {' / '.join(last_lines(log, 5))}"
            raise RuntimeError(message)
        time.sleep(0.03)


@contextlib.contextmanager
def start_containers() -> Iterator[Servers]:
    """Kafka, PostgreSQL and Redis as containers, for machines that have an engine."""
    from testcontainers.kafka import KafkaContainer
    from testcontainers.postgres import PostgresContainer
    from testcontainers.redis import RedisContainer

    with (
        KafkaContainer("apache/kafka:4.1.0").with_kraft() as kafka,
        PostgresContainer("postgres:18", driver=None) as postgres,
        RedisContainer("valkey/valkey:9") as redis,
    ):
        redis_url = f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}/0"
        yield Servers(kafka.get_bootstrap_server(), postgres.get_connection_url(), redis_url)
