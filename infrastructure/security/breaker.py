"""Circuit breaker: a dependency that is down gets one attempt from time to time instead of all of them.

Closed, all attempts are made. After `threshold` failures in a row it opens and no attempt is made. After a pause it is
half open: one attempt is made, the others wait. If that succeeds, the breaker closes, else it opens for twice as long.
Why it is not a library's: docs/adr/0012-job-queue-before-a-slow-provider.md.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from infrastructure.observability import metrics

log = logging.getLogger(__name__)

State = Literal["closed", "half_open", "open"]
_GAUGE: Final[dict[State, int]] = {"closed": 0, "half_open": 1, "open": 2}


class Unavailable(Exception):
    """The dependency was unreachable, too slow, or reported that it is unavailable. This counts as a failure."""


class BreakerOpen(Exception):
    """The attempt was not made, so it has had no effect."""


class CircuitBreaker:
    """Circuit breaker in front of one dependency. Its state is that of this process; `clock` returns seconds.

    `pauses` are the first and the longest pause while it is open. `on_change` is called whenever `available` changes,
    for example to wake a job queue.
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: int = 5,
        pauses: tuple[float, float] = (1.0, 15.0),
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.threshold = threshold
        self.pauses = pauses
        self.clock = clock
        self.on_change = on_change
        self._failures = 0
        self._pause = pauses[0]
        self._open_until: float | None = None
        self._probing = False
        metrics.BREAKER.labels(name).set_function(lambda: _GAUGE[self.state])

    @property
    def state(self) -> State:
        """The current state. An open breaker becomes half open by the clock alone."""
        if self._open_until is None:
            return "closed"
        return "open" if self.clock() < self._open_until else "half_open"

    @property
    def available(self) -> bool:
        """True if the breaker is closed. While it is half open, the dependency may still be down."""
        return self._open_until is None

    def capacity(self, wanted: int) -> int:
        """Return how many of `wanted` attempts may run at the same time: all, one, or none."""
        return {"closed": wanted, "half_open": min(wanted, 1), "open": 0}[self.state]

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Make one attempt inside this context. Raises `BreakerOpen` if it must not be made.

        `Unavailable`, a timeout and a cancellation count as failures. Any other outcome is a response of the
        dependency, including an error of another type, and counts as a success.
        """
        state = self.state
        if state == "open" or (state == "half_open" and self._probing):
            raise BreakerOpen(f"{self.name} is down: no attempt is made now")
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
        # An attempt that began before the breaker opened may succeed afterwards: as good a sign as a probe.
        self._failures, self._pause = 0, self.pauses[0]
        if self._open_until is not None:
            self._open_until = None
            log.info("%s responds again", self.name)
            self._report_change()

    def _failed(self, *, probe: bool) -> None:
        self._failures += 1
        if self._open_until is None and self._failures >= self.threshold:
            self._open_until = self.clock() + self._pause
            log.warning(
                "%s is down: %d failures in a row; next attempt in %.1f s", self.name, self._failures, self._pause
            )
            self._report_change()
        elif probe:
            self._pause = min(self._pause * 2, self.pauses[1])
            self._open_until = self.clock() + self._pause

    def _report_change(self) -> None:
        if self.on_change is not None:
            self.on_change()
