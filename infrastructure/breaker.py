"""A circuit breaker: whoever is down is not asked by everybody, but now and then by one.

Closed, all attempts go through. After `threshold` failures in a row it is open and none does. After a pause it is half
open: one attempt goes through, the others wait; if it succeeds the breaker closes, else it opens for twice as long.
Why not a library's: docs/adr/0012-rows-and-a-pump-before-a-slow-provider.md.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from infrastructure import metrics

log = logging.getLogger(__name__)

State = Literal["closed", "half_open", "open"]
_GAUGE: Final[dict[State, int]] = {"closed": 0, "half_open": 1, "open": 2}


class Unavailable(Exception):
    """It could not be reached, did not answer in time, or answered that it can't: what counts as a failure."""


class BreakerOpen(Exception):
    """The attempt was not made: nothing is known of it, and nothing has happened."""


class Breaker:
    """One for each thing that can be down. Its state is this process's own view; `clock` counts seconds.

    `changed` is called when `available` has changed: what hangs on it may be woken.
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: int = 5,
        pauses: tuple[float, float] = (1.0, 15.0),
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.threshold = threshold
        self.pauses = pauses
        self.clock = clock
        self.changed = changed
        self._failures = 0
        self._pause = pauses[0]
        self._open_until: float | None = None
        self._probing = False
        metrics.BREAKER.labels(name).set_function(lambda: _GAUGE[self.state])

    @property
    def state(self) -> State:
        """What it is now; open becomes half open by the clock alone."""
        if self._open_until is None:
            return "closed"
        return "open" if self.clock() < self._open_until else "half_open"

    @property
    def available(self) -> bool:
        """Whether it is closed: while it is half open nobody knows yet."""
        return self._open_until is None

    def room(self, wanted: int) -> int:
        """How many of `wanted` attempts may be in hand: all, one, or none."""
        return {"closed": wanted, "half_open": min(wanted, 1), "open": 0}[self.state]

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one attempt. `BreakerOpen` when it must not be made.

        `Unavailable`, a timeout and being cancelled by one are failures. Every other end is an answer, also a refusal.
        """
        state = self.state
        if state == "open" or (state == "half_open" and self._probing):
            raise BreakerOpen(f"{self.name} is away and is not asked now")
        probe = self._probing = state == "half_open"
        try:
            yield
        except (Unavailable, TimeoutError, asyncio.CancelledError):
            self._failed(probe=probe)
            raise
        except Exception:
            self._succeeded()
            raise
        else:
            self._succeeded()
        finally:
            if probe:
                self._probing = False

    def _succeeded(self) -> None:
        # An attempt that began before it opened may end well after: that is as good a sign as a probe's.
        self._failures, self._pause = 0, self.pauses[0]
        if self._open_until is not None:
            self._open_until = None
            log.info("%s answers again", self.name)
            self._tell()

    def _failed(self, *, probe: bool) -> None:
        self._failures += 1
        if self._open_until is None and self._failures >= self.threshold:
            self._open_until = self.clock() + self._pause
            log.warning(
                "%s is away: %d failures in a row; asked again in %.1f s", self.name, self._failures, self._pause
            )
            self._tell()
        elif probe:
            self._pause = min(self._pause * 2, self.pauses[1])
            self._open_until = self.clock() + self._pause

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed()
