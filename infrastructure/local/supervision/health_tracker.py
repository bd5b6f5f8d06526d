"""Health of a program (ready, degraded, frozen), derived from its probe results. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from infrastructure.local.servers.probes import Health

FROZEN_AFTER_SECONDS, FROZEN_AFTER_MISSES = 6.0, 3
"""A program that was live is killed after this many seconds and this many probes in a row without an answer."""
UNHEALTHY_LIMIT_SECONDS = 30.0
"""Seconds that a program may report itself unhealthy before it is killed."""
START_LIMIT_SECONDS = 60.0
"""Seconds that a program may take to its first live probe before it is killed."""
STABLE_AFTER_SECONDS = 30.0
"""Seconds of being ready without interruption after which earlier crashes no longer count."""


@dataclass
class HealthTracker:
    """Probe history of one run of a program that started at the time `started_at` (seconds of any clock)."""

    started_at: float
    last_answer_at: float | None = None
    """Time of the last answer."""
    last_live_at: float | None = None
    """Time of the last probe that found the program live."""
    ready_since: float | None = None
    """Time since which the program has been ready without interruption."""
    has_been_ready: bool = False
    """True if the program has been ready at least once."""
    missed_probes: int = 0
    """Probes in a row without an answer."""

    def record(self, health: Health, now: float) -> str | None:
        """Record one probe; return the reason to kill the program, `None` if it may go on."""
        if health is Health.NO_ANSWER:
            self.missed_probes += 1
        else:
            self.last_answer_at, self.missed_probes = now, 0
        if health in (Health.LIVE, Health.READY):
            self.last_live_at = now
        if health is Health.READY:
            self.has_been_ready = True
            self.ready_since = now if self.ready_since is None else self.ready_since
        elif health is not Health.NO_ANSWER or self.missed_probes > 1:
            # A single missed probe does not end readiness.
            self.ready_since = None
        return self._reason_to_kill(health, now)

    def _reason_to_kill(self, health: Health, now: float) -> str | None:
        if self.last_live_at is None:
            return (
                f"was not live within {START_LIMIT_SECONDS:.0f} s of its start"
                if now - self.started_at > START_LIMIT_SECONDS
                else None
            )
        if (
            health is Health.NO_ANSWER
            and self.last_answer_at is not None
            and self.missed_probes >= FROZEN_AFTER_MISSES
            and now - self.last_answer_at > FROZEN_AFTER_SECONDS
        ):
            return f"has not answered for {now - self.last_answer_at:.0f} s"
        if health is Health.UNHEALTHY and now - self.last_live_at > UNHEALTHY_LIMIT_SECONDS:
            return f"has been unhealthy for {now - self.last_live_at:.0f} s"
        return None

    @property
    def state(self) -> str:
        """State as `holdfast status` prints it: `starting`, `ready` or `degraded`."""
        if self.ready_since is not None:
            return "ready"
        return "degraded" if self.has_been_ready else "starting"

    def is_stable(self, now: float) -> bool:
        """Return whether the program has been ready for so long that its earlier crashes no longer count."""
        return self.ready_since is not None and now - self.ready_since > STABLE_AFTER_SECONDS
