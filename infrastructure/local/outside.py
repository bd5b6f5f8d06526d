"""Servers of somebody else, named in the environment: not started here, only asked whether they answer."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from infrastructure.local import probes
from infrastructure.local.errors import Fault, NoAnswer
from infrastructure.local.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from infrastructure.local.events import Tell

VARIABLES = {"kafka": "HOLDFAST_KAFKA", "postgres": "HOLDFAST_POSTGRES_URL", "redis": "HOLDFAST_REDIS_URL"}
_PORTS = {"kafka": 9092, "postgres": 5432, "redis": 6379}


def endpoints(name: str, address: str) -> list[tuple[str, int]]:
    """The hosts and ports of an address: a bootstrap list for Kafka, a URL for the others."""
    pieces = address.split(",") if name == "kafka" else [urlsplit(address).netloc.rpartition("@")[2]]
    found = []
    for piece in pieces:
        link = urlsplit(f"//{piece.strip()}")
        try:
            found.append((link.hostname or "127.0.0.1", link.port or _PORTS[name]))
        except ValueError:
            raise NoAnswer(f"{VARIABLES[name]} is not an address: {piece!r}") from None
    return found


def plain(name: str, address: str) -> str:
    """An address without its password."""
    if name == "kafka":
        return address
    link = urlsplit(address)
    user, _, host = link.netloc.rpartition("@")
    user = user.partition(":")[0]
    return link._replace(netloc=f"{user}@{host}" if user else host).geturl()


def check(name: str, address: str) -> None:
    """Raise NoAnswer unless the server can be used with this address."""
    try:
        if name == "kafka":
            if not any(probes.kafka(host, port) for host, port in endpoints(name, address)):
                raise NoAnswer("no broker there speaks Kafka's protocol")  # noqa: TRY301 - one sentence for all
        elif name == "postgres":
            import psycopg

            psycopg.connect(address, connect_timeout=3).close()
        else:
            import redis

            with redis.Redis.from_url(address, socket_timeout=3, socket_connect_timeout=3) as client:
                client.ping()
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise NoAnswer(
            f"{VARIABLES[name]} names {plain(name, address)}, which cannot be used ({why}):"
            f" start that server or correct the address, or unset {VARIABLES[name]} to have one started here"
        ) from error


class Watch(threading.Thread):
    """Looks once in a few seconds whether an outside server still takes connections."""

    restarts = pid = failures = 0
    metrics: str | None = None
    fault: Fault | None = None

    def __init__(self, name: str, address: str, tell: Tell, changed: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.address, self.tell, self.changed = address, tell, changed
        self.state = "starting"
        self.was_ready, self.stopping = threading.Event(), threading.Event()

    def run(self) -> None:
        """Until `stopping` is set."""
        self.tell(Event("ready", self.name, plain(self.name, self.address), "external"))
        while not self.stopping.is_set():
            state = "ready" if self._open() else "degraded"
            if state != self.state:
                self.state = state
                self.changed()
            self.was_ready.set()
            self.stopping.wait(3.0)

    def stop(self, patience: float) -> None:
        """Stop looking; the server is not ours to stop."""
        del patience
        self.stopping.set()

    def _open(self) -> bool:
        for where in endpoints(self.name, self.address):
            try:
                socket.create_connection(where, 1.0).close()
            except OSError:
                continue
            return True
        return False
