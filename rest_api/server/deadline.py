"""The deadline of a connection, from its first byte to its last: one timer, whatever the connection is used for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MIN_BYTES_PER_SECOND: Final = 4096
"""Rate at which a peer must read. Less of it, and the connection is aborted at its deadline."""
OPEN_CHECK_SECONDS: Final = 30.0


class Phase(StrEnum):
    """The use of a connection at a time; each phase but `OPEN` has a deadline, at which the connection is aborted."""

    CONNECTED = "connected"
    """No byte has been received yet."""
    RECEIVING = "receiving"
    """Part of a request has been received."""
    RESPONDING = "responding"
    """The application handles a complete request, or the peer reads the response."""
    IDLE = "idle"
    """The response is complete, and nothing of another request has been received."""
    HANDSHAKING = "handshaking"
    """The application decides about a WebSocket handshake."""
    OPEN = "open"
    """The WebSocket is open. Its pings are the deadline."""
    CLOSING = "closing"
    """The last bytes have been written. This phase is never left."""


_READ_PHASES: Final = frozenset({Phase.RESPONDING, Phase.IDLE})
"""Phases in which the deadline is the peer's, while it has not read a response."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a connection may take. The settings with these names are the configurable ones."""

    request: float = 10.0
    """For a whole request, from the connection or the end of the response before it."""
    response: float = 60.0
    """For the application to respond; above every time limit of the application itself."""
    unread: float = 30.0
    """For a peer that has stopped reading a response."""
    keep_alive: float = 15.0
    """Between two requests."""
    close: float = 5.0
    """For the peer to read the last bytes of a connection that is closed."""

    def of(self, phase: Phase) -> float:
        """Return the seconds from the beginning of a phase to its deadline."""
        match phase:
            case Phase.RESPONDING:
                return self.response
            case Phase.IDLE:
                return self.keep_alive + self.close  # uvicorn closes it after `keep_alive`
            case Phase.OPEN:
                return OPEN_CHECK_SECONDS
            case Phase.CLOSING:
                return self.close
            case _:
                return self.request


class ConnectionDeadline:
    """The phase of a connection and its deadline.

    The timer is not moved when the deadline is: it starts itself again when it fires too early, so that a request
    costs no timer.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        limits: TimeLimits,
        loop: asyncio.AbstractEventLoop,
        on_abort: Callable[[Phase], None],
    ) -> None:
        self.phase = Phase.CONNECTED
        self._transport = transport
        self._limits = limits
        self._loop = loop
        self._on_abort = on_abort
        self._is_unread = False
        self._unread_bytes = 0
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._set(limits.of(self.phase))

    def enter(self, phase: Phase) -> None:
        """Begin a phase. `CLOSING` stays, and the deadline of an unread response stays while the response is unread."""
        if self.phase is Phase.CLOSING:
            return
        is_first_byte = self.phase is Phase.CONNECTED and phase is Phase.RECEIVING
        self.phase = phase
        if is_first_byte or (self._is_unread and phase in _READ_PHASES):
            return
        self._set(self._limits.of(phase))

    def pause(self) -> None:
        """Begin the time for the peer to read: too many bytes are waiting."""
        self._is_unread = True
        if self.phase in _READ_PHASES:
            self._set(self._limits.unread)

    def resume(self) -> None:
        """Return to the deadline of the phase: the peer has read."""
        self._is_unread = False
        if self.phase in _READ_PHASES:
            self._set(self._limits.of(self.phase))

    def stop(self) -> None:
        """Stop the timer: the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, seconds: float) -> None:
        self._unread_bytes = self._transport.get_write_buffer_size()
        self._at = self._loop.time() + seconds
        if self._timer is None or self._at < self._timer_at:
            self.stop()
            self._start()

    def _start(self) -> None:
        self._timer_at = self._at
        self._timer = self._loop.call_at(self._at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._loop.time() < self._at:
            self._start()
        elif self.phase is Phase.OPEN and not self._transport.is_closing():
            self._set(self._limits.of(Phase.OPEN))
        else:
            self._expire()

    def _expire(self) -> None:
        """Abort the connection, unless its peer has read enough since the deadline was set."""
        read = self._unread_bytes - self._transport.get_write_buffer_size()
        earned = min(read / MIN_BYTES_PER_SECOND, self._limits.unread)
        if earned >= 1 and self.phase in {*_READ_PHASES, Phase.CLOSING}:
            self._set(earned)
            return
        self._on_abort(self.phase)
        self._transport.abort()
