"""Bounds for simple asyncio servers: how many connections, how long each may last, and how long one may stay unread.

Wraps the protocol factory of any server, and passes every event on unchanged.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

UNREAD_SECONDS: Final = 10.0
"""Time for which a peer may leave sent bytes unread, also after the protocol has closed the connection."""


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """The bounds of a server's connections."""

    connections: int
    """Most connections at a time. One more aborts the oldest."""
    lifetime_seconds: float | None = None
    """Time limit of a whole connection; `None`: the protocol has time limits of its own."""
    unread_seconds: float = UNREAD_SECONDS


class BoundedServer:
    """A protocol factory for `create_server`, around the factory of the protocol that does the work."""

    def __init__(self, factory: Callable[[], asyncio.Protocol], bounds: ConnectionBounds) -> None:
        self.bounds = bounds
        self._factory = factory
        self._open: OrderedDict[BoundedProtocol, None] = OrderedDict()

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return BoundedProtocol(self, self._factory())

    def add(self, protocol: "BoundedProtocol") -> None:
        """Count a connection; abort the oldest one if there are too many."""
        self._open[protocol] = None
        if len(self._open) > self.bounds.connections:
            oldest, _ = self._open.popitem(last=False)
            oldest.transport.abort()

    def remove(self, protocol: "BoundedProtocol") -> None:
        """Count a connection no longer."""
        self._open.pop(protocol, None)


class BoundedProtocol(asyncio.Protocol):
    """A protocol that passes every event on, and aborts the connection at its time limits."""

    transport: asyncio.Transport

    def __init__(self, server: BoundedServer, protocol: asyncio.Protocol) -> None:
        self._server = server
        self._protocol = protocol
        self._lifetime: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection's lifetime."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self.transport.set_write_buffer_limits(high=0)  # `pause_writing` then reports any unread byte
        self._server.add(self)
        bounds = self._server.bounds
        if bounds.lifetime_seconds is not None:
            self._lifetime = asyncio.get_running_loop().call_later(bounds.lifetime_seconds, self.transport.abort)
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the time limits."""
        self._server.remove(self)
        for timer in (self._lifetime, self._unread):
            if timer is not None:
                timer.cancel()
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass received bytes on."""
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass the end of what the peer sends on."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Begin the time for the peer to read."""
        self._unread = asyncio.get_running_loop().call_later(self._server.bounds.unread_seconds, self.transport.abort)
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """End the time for the peer to read: it has read everything."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        self._protocol.resume_writing()
