"""External servers, named in the environment: monitored, but neither started nor stopped."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from infrastructure.local.errors import ServerUnavailable, StackError
from infrastructure.local.events import Event
from infrastructure.local.servers import probes

if TYPE_CHECKING:
    from collections.abc import Callable

    from infrastructure.local.events import EventSink

ADDRESS_VARIABLES = {"kafka": "HOLDFAST_KAFKA", "postgres": "HOLDFAST_POSTGRES_URL", "redis": "HOLDFAST_REDIS_URL"}
_DEFAULT_PORTS = {"kafka": 9092, "postgres": 5432, "redis": 6379}


def endpoints(name: str, address: str) -> list[tuple[str, int]]:
    """Return the hosts and ports of an address: a bootstrap list for Kafka, a URL for the others.

    Raises `ServerUnavailable` if the address is malformed.
    """
    pieces = address.split(",") if name == "kafka" else [urlsplit(address).netloc.rpartition("@")[2]]
    found = []
    for piece in pieces:
        link = urlsplit(f"//{piece.strip()}")
        try:
            found.append((link.hostname or "127.0.0.1", link.port or _DEFAULT_PORTS[name]))
        except ValueError:
            raise ServerUnavailable(
                f"{ADDRESS_VARIABLES[name]} contains {piece!r}, which is not an address: expected host or host:port"
            ) from None
    return found


def without_password(name: str, address: str) -> str:
    """Return an address without its password."""
    if name == "kafka":
        return address
    link = urlsplit(address)
    user, _, host = link.netloc.rpartition("@")
    user = user.partition(":")[0]
    query = urlencode([(name, value) for name, value in parse_qsl(link.query) if "password" not in name])
    return link._replace(netloc=f"{user}@{host}" if user else host, query=query).geturl()


def _kafka_tls_context() -> ssl.SSLContext | None:
    """Return the TLS context for the external broker, `None` if HOLDFAST_KAFKA_SECURITY_PROTOCOL asks for no TLS."""
    if "SSL" not in os.environ.get("HOLDFAST_KAFKA_SECURITY_PROTOCOL", ""):
        return None
    from infrastructure.messaging.kafka_security import tls_context
    from infrastructure.process.settings import Settings

    return tls_context(Settings())


def require_usable(name: str, address: str) -> None:
    """Raise `ServerUnavailable` unless a client can connect and authenticate with this address."""
    try:
        if name == "kafka":
            context = _kafka_tls_context()
            if not any(probes.kafka_answers(host, port, context) for host, port in endpoints(name, address)):
                raise ServerUnavailable("no broker there speaks Kafka's protocol")  # noqa: TRY301 - wrapped below like the others
        elif name == "postgres":
            import psycopg

            psycopg.connect(address, connect_timeout=3).close()
        else:
            import redis

            with redis.Redis.from_url(address, socket_timeout=3, socket_connect_timeout=3) as client:
                client.ping()
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ServerUnavailable(
            f"{ADDRESS_VARIABLES[name]} names {without_password(name, address)}, which cannot be used ({reason}):"
            f" start that server or correct the address, or unset {ADDRESS_VARIABLES[name]} to start a local one"
        ) from error


class ExternalServerMonitor(threading.Thread):
    """Monitor of an external server: checks every few seconds whether the server accepts connections."""

    restarts = pid = failures = 0
    metrics: str | None = None
    last_error: StackError | None = None

    def __init__(self, name: str, address: str, emit: EventSink, on_change: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.address, self.emit, self.on_change = address, emit, on_change
        self.state, self.since = "starting", time.time()
        self.became_ready, self.stop_requested = threading.Event(), threading.Event()

    def run(self) -> None:
        """Check the server until `stop_requested` is set."""
        self.emit(Event("ready", self.name, without_password(self.name, self.address), "external"))
        while not self.stop_requested.is_set():
            state = "ready" if self._accepts_connections() else "degraded"
            if state != self.state:
                self.state, self.since = state, time.time()
                self.on_change()
            self.became_ready.set()
            self.stop_requested.wait(3.0)

    def stop(self, timeout: float, hurry: threading.Event) -> None:
        """Stop checking; the external server itself is not stopped."""
        del timeout, hurry
        self.stop_requested.set()

    def _accepts_connections(self) -> bool:
        for endpoint in endpoints(self.name, self.address):
            try:
                socket.create_connection(endpoint, 1.0).close()
            except OSError:
                continue
            return True
        return False
