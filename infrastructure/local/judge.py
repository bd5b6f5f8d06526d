"""When is a program well, unwell, frozen? Decided from what the probes found, without a clock or a process."""

from __future__ import annotations

from dataclasses import dataclass

from infrastructure.local.probes import Health

FROZEN, MISSES = 6.0, 3
"""A program that was up and has been silent for so many seconds and so often is killed."""
UNWELL = 30.0
"""One that answers that it is not well has this long to recover by itself."""
SLOW_START = 60.0
"""Seconds after which a start without a good answer counts as hung."""
HEALTHY = 30.0
"""Seconds of being ready after which earlier crashes are forgotten."""


@dataclass
class Judge:
    """One life of a program, from its start at the time `began` (seconds of any clock)."""

    began: float
    heard: float | None = None
    """When it answered last."""
    well: float | None = None
    """When it was live last."""
    ready: float | None = None
    """Since when it is ready, without a break."""
    was_ready: bool = False
    misses: int = 0

    def note(self, health: Health, now: float) -> str | None:
        """Take in one probe; returns why the program must be killed, None while it may live."""
        if health is Health.SILENT:
            self.misses += 1
        else:
            self.heard, self.misses = now, 0
        if health in (Health.LIVE, Health.READY):
            self.well = now
        if health is Health.READY:
            self.was_ready = True
            self.ready = now if self.ready is None else self.ready
        elif health is not Health.SILENT or self.misses > 1:
            # One lost probe is not yet news.
            self.ready = None
        return self._hopeless(health, now)

    def _hopeless(self, health: Health, now: float) -> str | None:
        if self.well is None:
            return (
                f"gave no good answer within {SLOW_START:.0f} s of its start" if now - self.began > SLOW_START else None
            )
        if health is Health.SILENT and self.heard is not None and self.misses >= MISSES and now - self.heard > FROZEN:
            return f"has not answered for {now - self.heard:.0f} s"
        if health is Health.SICK and now - self.well > UNWELL:
            return f"has been unwell for {now - self.well:.0f} s"
        return None

    @property
    def state(self) -> str:
        """Its word in `holdfast status`."""
        if self.ready is not None:
            return "ready"
        return "degraded" if self.was_ready else "starting"

    def forgiven(self, now: float) -> bool:
        """Whether it has been ready for so long that its earlier crashes do not count any more."""
        return self.ready is not None and now - self.ready > HEALTHY
