"""The open connections of an edge: how many there may be, in all and per client network, and which is closed for room.

Every connection is counted from its acceptance to its end, whether it is idle, serves HTTP or has become a WebSocket.
"""

import asyncio
import logging
import resource
import time
from collections import Counter, OrderedDict
from ipaddress import ip_address, ip_network
from typing import Final

from infrastructure.observability import metrics
from rest_api.protocol.problems import Problem
from rest_api.security.address_limiter import limited_network
from rest_api.server.deadline import ConnectionDeadline, Phase, TimeLimits
from rest_api.settings import EdgeSettings

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 50_000
OWN_DESCRIPTORS: Final = 64
"""Descriptors that are kept for Kafka, Postgres, Redis, logs and the health port."""
MAX_SURPLUS: Final = 32
"""Descriptors that are kept for connections beyond the limit, which are answered with a refusal."""
SURPLUS_SECONDS: Final = 2.0
"""Time limit for the request of a connection that will be refused."""
RETRY_AFTER_SECONDS: Final = 5
LOG_SECONDS: Final = 60.0


class ClientConnection:
    """An open connection: its transport, its deadline, and its place in the pool."""

    def __init__(self, transport: asyncio.Transport, pool: "ConnectionPool", loop: asyncio.AbstractEventLoop) -> None:
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.network = pool.counted_network(str(peer[0])) if peer else None
        self._pool = pool
        self.refusal = pool.add(self)
        """The answer to each request but probes; `None` if there is room for this connection."""
        limits = pool.time_limits if self.refusal is None else pool.surplus_limits
        self._deadline = ConnectionDeadline(transport, limits, loop, _count_abort)

    def enter(self, phase: Phase) -> None:
        """Begin a phase, and its deadline."""
        self._deadline.enter(phase)
        if phase is Phase.IDLE:
            self._pool.note_idle(self)
        else:
            self._pool.note_busy(self)

    def note_closing(self) -> None:
        """Begin the phase `CLOSING` if the transport is closing, whichever part of the server has closed it."""
        if self.transport.is_closing():
            self.enter(Phase.CLOSING)

    def pause(self) -> None:
        """Begin the time for the peer to read."""
        self._deadline.pause()

    def resume(self) -> None:
        """End the time for the peer to read."""
        self._deadline.resume()

    def lost(self) -> None:
        """Forget the connection, which is closed."""
        self._deadline.stop()
        self._pool.remove(self)

    def make_room(self) -> None:
        """Close the connection, which is idle, and count it no longer."""
        _count_abort("room")
        self._pool.remove(self)
        self._deadline.enter(Phase.CLOSING)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()


class ConnectionPool:
    """All open connections of a server."""

    def __init__(
        self, settings: EdgeSettings, time_limits: TimeLimits | None = None, descriptors: int | None = None
    ) -> None:
        """`descriptors` is the limit of open files of this process, unless given."""
        self._settings = settings
        self._proxies = _Proxies(settings.trusted_proxies())
        self.time_limits = time_limits or TimeLimits()
        self.surplus_limits = TimeLimits(request=SURPLUS_SECONDS, close=min(1.0, self.time_limits.close))
        self.capacity, self.surplus = divide_descriptors(descriptors or _max_descriptors())
        self.per_network = max(1, min(settings.limit_address_connections, self.capacity // 2))
        self._counted: set[ClientConnection] = set()
        self._networks: Counter[str] = Counter()
        self._idle: OrderedDict[ClientConnection, None] = OrderedDict()
        """Connections without a request, the one that has been idle for longest first."""
        self._surplus: OrderedDict[ClientConnection, None] = OrderedDict()
        self._logged_at = -LOG_SECONDS
        metrics.EDGE_CONNECTIONS.set_function(lambda: len(self._counted) + len(self._surplus))

    def counted_network(self, peer: str) -> str | None:
        """Return the network under which a peer's connections are counted; `None` if they are not limited.

        Connections of a trusted proxy are those of all its clients, so only the total limits them.
        """
        return None if peer in self._proxies else limited_network(self._settings, peer)

    def add(self, connection: ClientConnection) -> Problem | None:
        """Count a connection; return the problem with which it must be answered if there is no room for it.

        An idle connection is closed to make room. Without one, the new connection is surplus: the edge answers probes
        on it, and refuses other requests. The oldest surplus connections are aborted beyond a limit of their own.
        """
        refusal = self._refusal(connection.network)
        if refusal is None:
            self._counted.add(connection)
            self._idle[connection] = None
            if connection.network is not None:
                self._networks[connection.network] += 1
            return None
        self._surplus[connection] = None
        if len(self._surplus) > self.surplus:
            oldest, _ = self._surplus.popitem(last=False)
            _count_abort("surplus")
            oldest.transport.abort()
        return refusal

    def remove(self, connection: ClientConnection) -> None:
        """Count a connection no longer."""
        self._idle.pop(connection, None)
        self._surplus.pop(connection, None)
        if connection not in self._counted:
            return
        self._counted.remove(connection)
        if connection.network is not None:
            self._networks[connection.network] -= 1
            if not self._networks[connection.network]:
                del self._networks[connection.network]

    def note_idle(self, connection: ClientConnection) -> None:
        """Note that a connection has no request and may be closed to make room."""
        if connection in self._counted:
            self._idle[connection] = None
            self._idle.move_to_end(connection)

    def note_busy(self, connection: ClientConnection) -> None:
        """Note that a connection has a request, or is a WebSocket."""
        self._idle.pop(connection, None)

    def _refusal(self, network: str | None) -> Problem | None:
        if network is not None and self._networks[network] >= self.per_network:
            metrics.EDGE_CONNECTIONS_REFUSED.labels("address").inc()
            return _closing("rate-limited", f"more than {self.per_network} connections from this address")
        if len(self._counted) < self.capacity:
            return None
        if self._idle:
            next(iter(self._idle)).make_room()
            return None
        metrics.EDGE_CONNECTIONS_REFUSED.labels("full").inc()
        self._log_full()
        return _closing("overloaded", "too many connections are open")

    def _log_full(self) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            log.warning(
                "connections are refused: all %d that the limit of open files allows are in use; raise the limit"
                " (ulimit -n), or start another edge",
                self.capacity,
            )


class _Proxies:
    """The trusted proxies: addresses, networks, or `*` for any peer, as uvicorn reads them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._all = "*" in names
        self._networks = []
        for name in names:
            try:
                self._networks.append(ip_network(name, strict=False))
            except ValueError:
                continue

    def __contains__(self, peer: str) -> bool:
        if self._all or not self._networks:
            return self._all
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def divide_descriptors(most: int) -> tuple[int, int]:
    """Return the number of connections that a limit of open files allows, and that of surplus connections."""
    surplus = max(4, min(MAX_SURPLUS, most // 8))
    own = min(OWN_DESCRIPTORS, most // 2)
    return max(1, min(MAX_CONNECTIONS, most - own - surplus)), surplus


def _max_descriptors() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2 * MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft


def _closing(slug: str, detail: str) -> Problem:
    return Problem(slug, detail, retry_after=RETRY_AFTER_SECONDS, headers={"Connection": "close"})


def _count_abort(reason: str) -> None:
    metrics.EDGE_CONNECTIONS_CUT.labels(str(reason)).inc()
