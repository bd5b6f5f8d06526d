"""Timer of microsecond precision. Event loops sleep in whole milliseconds on Linux; a timer descriptor does not.

A virtual machine wakes a sleeping process about a tenth of a millisecond late. The timer can therefore end its sleep
early and poll the loop until the instant, so that sockets are read meanwhile.
"""

import asyncio
import ctypes
import os
import sys
from contextlib import suppress
from time import perf_counter
from typing import Final

_MONOTONIC: Final = 1
_NONBLOCK_CLOEXEC: Final = 0o4000 | 0o2000000
_ABSOLUTE: Final = 1
MAX_POLL_SECONDS: Final = 0.0003
MAX_POLL_SHARE: Final = 0.1
"""Share of the time between two instants that may be spent polling, which occupies a core."""


def poll_seconds(rate: float) -> float:
    """Return for how long to poll before each of `rate` instants per second."""
    return min(MAX_POLL_SECONDS, MAX_POLL_SHARE / rate) if rate > 0 else 0.0


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class PreciseTimer:
    """Timer that wakes the running loop at instants of `time.perf_counter()`. Call `close` when done."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._descriptor: int | None = None
        if sys.platform == "linux":  # perf_counter is CLOCK_MONOTONIC there
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._descriptor = self._libc.timerfd_create(_MONOTONIC, _NONBLOCK_CLOEXEC)
            if self._descriptor < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create")
            self._loop.add_reader(self._descriptor, self._on_readable)

    async def sleep_until(self, instant: float, poll: float = 0.0) -> None:
        """Sleep until `instant`, polling the loop for the last `poll` seconds; return at once if it has passed."""
        await self._sleep_until(instant - poll)
        while perf_counter() < instant:  # noqa: ASYNC110 - there is no event for an instant
            await asyncio.sleep(0)

    async def _sleep_until(self, instant: float) -> None:
        ahead = instant - perf_counter()
        if ahead <= 0:
            return
        if self._descriptor is None:
            await asyncio.sleep(ahead)
            return
        whole = int(instant)
        at = _Itimerspec(_Timespec(0, 0), _Timespec(whole, int((instant - whole) * 1e9)))
        self._waiting = self._loop.create_future()
        self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(at), None)
        await self._waiting

    def close(self) -> None:
        """Close the timer descriptor."""
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

    def _on_readable(self) -> None:
        if self._descriptor is not None:
            with suppress(BlockingIOError):
                os.read(self._descriptor, 8)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
