"""Health of a program (ready, degraded, frozen), derived from its probe results. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from infrastructure.local.probes import Health

FROZEN, MISSES = 6.0, 3
"""A program that was live is killed after this many seconds and this many probes in a row without an answer."""
UNWELL = 30.0
"""Seconds that a program may report itself unhealthy before it is killed."""
SLOW_START = 60.0
"""Seconds that a program may take to its first live probe before it is killed."""
HEALTHY = 30.0
"""Seconds of being ready without interruption after which earlier crashes no longer count."""


@dataclass
class Judge:
    """Probe history of one run of a program that started at the time `began` (seconds of any clock)."""

    began: float
    heard: float | None = None
    """Time of the last answer."""
    well: float | None = None
    """Time of the last probe that found the program live."""
    ready: float | None = None
    """Time since which the program has been ready without interruption."""
    was_ready: bool = False
    """True if the program has been ready at least once."""
    misses: int = 0
    """Probes in a row without an answer."""

    def note(self, health: Health, now: float) -> str | None:
        """Record one probe; return the reason to kill the program, `None` if it may go on."""
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
            # A single missed probe does not end readiness.
            self.ready = None
        return self._reason_to_kill(health, now)

    def _reason_to_kill(self, health: Health, now: float) -> str | None:
        if self.well is None:
            return f"was not live within {SLOW_START:.0f} s of its start" if now - self.began > SLOW_START else None
        if health is Health.SILENT and self.heard is not None and self.misses >= MISSES and now - self.heard > FROZEN:
            return f"has not answered for {now - self.heard:.0f} s"
        if health is Health.SICK and now - self.well > UNWELL:
            return f"has been unhealthy for {now - self.well:.0f} s"
        return None

    @property
    def state(self) -> str:
        """State as `holdfast status` prints it: `starting`, `ready` or `degraded`."""
        if self.ready is not None:
            return "ready"
        return "degraded" if self.was_ready else "starting"

    def forgiven(self, now: float) -> bool:
        """Return whether the program has been ready for so long that its earlier crashes no longer count."""
        return self.ready is not None and now - self.ready > HEALTHY
