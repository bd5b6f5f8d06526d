"""What a run measured: latencies in an HDR histogram, outcomes, and whether the driver itself can be believed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # it has no types

ANSWER_SECONDS: Final = 10.0
"""Who has no answer by then never gets one, as far as a run is concerned; it counts as this long."""
LATE_MS: Final = 1.0
BUSY_CORE: Final = 0.4
PERCENTILES: Final = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9))
LONGEST_MICROSECONDS: Final = 60_000_000


class Histogram:
    """Times from one microsecond to a minute, to three digits."""

    def __init__(self) -> None:
        self._counts = HdrHistogram(1, LONGEST_MICROSECONDS, 3)

    def record(self, seconds: float) -> None:
        """Count one."""
        self._counts.record_value(min(LONGEST_MICROSECONDS, max(1, round(seconds * 1e6))))

    def __len__(self) -> int:
        return int(self._counts.get_total_count())

    def at(self, percentile: float) -> float:
        """Milliseconds below which `percentile` (0 to 100) of what was recorded lies; 0 when nothing was."""
        return round(self._counts.get_value_at_percentile(percentile) / 1000, 3) if len(self) else 0.0

    def summary(self) -> dict[str, float]:
        """`p50`, `p90`, `p99`, `p999` and `max`, in milliseconds."""
        summary = {name: self.at(percentile) for name, percentile in PERCENTILES}
        return {**summary, "max": round(self._counts.get_max_value() / 1000, 3) if len(self) else 0.0}


@dataclass(slots=True)
class Measured:
    """One run of the driver. Latency is answer received less intended send; one that is lost counts as ten seconds."""

    rate: float
    """What was asked for a second; of a closed loop, 0."""
    seconds: float
    """How long requests were sent."""
    shoppers: int
    sent: int = 0
    in_time: int = 0
    """Answers other than errors that came while requests were still being sent: what goodput counts."""
    lost: int = 0
    cut: int = 0
    """Lines that were cut in the middle of the run."""
    outcomes: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    errors: Histogram = field(default_factory=Histogram)
    """How long an answer took that was an error, such as `unavailable`."""
    lateness: Histogram = field(default_factory=Histogram)
    """Actual less intended send."""
    core: float = 0.0
    """The driver's own share of one core."""

    @property
    def goodput(self) -> float:
        """Answers a second other than errors, while requests were sent."""
        return self.in_time / self.seconds if self.seconds else 0.0

    @property
    def fault(self) -> str | None:
        """Why the latencies can't be believed, or None."""
        return driver_fault(self.lateness.at(99), self.core)

    def as_json(self) -> dict[str, Any]:
        """For machines; times in milliseconds."""
        return {
            "ok": self.lost == 0 and self.cut == 0,
            "rate": self.rate,
            "seconds": round(self.seconds, 3),
            "shoppers": self.shoppers,
            "sent": self.sent,
            "outcomes": dict(sorted(self.outcomes.items())),
            "lost": self.lost,
            "cut": self.cut,
            "latency_ms": self.latency.summary(),
            "goodput": round(self.goodput, 1),
            "driver": {"late_p99_ms": self.lateness.at(99), "core": round(self.core, 3), "fault": self.fault},
        }


def driver_fault(late_p99_ms: float, core: float) -> str | None:
    """Why a driver that was this late and this busy can't be believed; None when it can."""
    if late_p99_ms > LATE_MS:
        return f"the driver itself was late: p99 {late_p99_ms:.2f} ms (more than {LATE_MS:g} ms)"
    if core > BUSY_CORE:
        return f"the driver itself was busy: {core:.2f} of a core (more than {BUSY_CORE:g})"
    return None


def lines_of(measured: Mapping[str, Any]) -> list[str]:
    """`Measured.as_json()` for people."""
    latency, driver = measured["latency_ms"], measured["driver"]
    outcomes = ", ".join(f"{count} {name}" for name, count in measured["outcomes"].items()) or "no answers"
    names = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "max"}
    answered = sum(measured["outcomes"].values())
    return [
        "latency   " + "  ".join(f"{name} {latency[key]:.1f}" for key, name in names.items()) + "  ms",
        f"outcomes  {outcomes}, {measured['lost']} lost",
        (
            f"rate      {measured['sent']} sent in {measured['seconds']:.1f} s by {measured['shoppers']} shoppers, "
            f"{answered} answered, {measured['goodput']:.0f}/s in time"
        ),
        f"driver    p99 {driver['late_p99_ms']:.2f} ms late, {driver['core']:.2f} of a core",
        *([f"          not to be believed: {driver['fault']}"] if driver["fault"] else []),
        *([f"          {measured['cut']} lines were cut"] if measured["cut"] else []),
    ]
