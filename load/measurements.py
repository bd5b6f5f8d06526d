"""Results of a run: latencies in an HDR histogram, outcomes, and whether the driver's own load invalidates them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # the package is not typed

ANSWER_TIMEOUT_SECONDS: Final = 10.0
"""Timeout for an answer. A lost request counts with this latency."""
MAX_LATENESS_MS: Final = 1.0
MAX_CORE_SHARE: Final = 0.4
PERCENTILES: Final = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9))
MAX_MICROSECONDS: Final = 60_000_000


class Histogram:
    """Histogram of durations from one microsecond to one minute, with three significant digits."""

    def __init__(self) -> None:
        self._counts = HdrHistogram(1, MAX_MICROSECONDS, 3)

    def record(self, seconds: float) -> None:
        """Add one duration."""
        self._counts.record_value(min(MAX_MICROSECONDS, max(1, round(seconds * 1e6))))

    def __len__(self) -> int:
        return int(self._counts.get_total_count())

    def percentile(self, percentile: float) -> float:
        """Return the given percentile (0 to 100) in milliseconds, or 0 if nothing was recorded."""
        return round(self._counts.get_value_at_percentile(percentile) / 1000, 3) if len(self) else 0.0

    def encode(self) -> str:
        """Return all counts as text, for `decode`."""
        return str(self._counts.encode().decode())

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the histogram that `encode` wrote."""
        histogram = cls()
        histogram._counts = HdrHistogram.decode(text.encode())
        return histogram

    def summary(self) -> dict[str, float]:
        """Return `p50`, `p90`, `p99`, `p999` and `max`, in milliseconds."""
        summary = {name: self.percentile(percentile) for name, percentile in PERCENTILES}
        return {**summary, "max": round(self._counts.get_max_value() / 1000, 3) if len(self) else 0.0}


@dataclass(slots=True)
class Measurement:
    """Result of one run of the driver. Latency counts from the intended send time; a lost request counts as 10 s."""

    rate: float
    """Requested rate per second; 0 for a closed loop."""
    seconds: float
    """Duration for which requests were sent."""
    shoppers: int
    sent: int = 0
    answered_in_time: int = 0
    """Answers other than errors received while requests were still being sent; the basis of goodput."""
    lost: int = 0
    lost_connections: int = 0
    """Connections lost during the run."""
    outcomes: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    errors: Histogram = field(default_factory=Histogram)
    """Latencies of error answers, such as `unavailable`."""
    lateness: Histogram = field(default_factory=Histogram)
    """Actual minus intended send times."""
    core_share: float = 0.0
    """The driver's own use of one core, from 0 to 1."""
    priority: str = ""
    """The driver's scheduling priority, as `priority.raised_priority` describes it."""

    @property
    def goodput(self) -> float:
        """Answers per second other than errors, while requests were sent."""
        return self.answered_in_time / self.seconds if self.seconds else 0.0

    @property
    def invalid_reason(self) -> str | None:
        """Reason why the latencies are not valid, or `None`."""
        return driver_invalid_reason(self.lateness.percentile(99), self.core_share)

    def as_message(self) -> dict[str, Any]:
        """Return everything as JSON values, for `from_message` in another process."""
        message = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value.encode() if isinstance(value, Histogram) else value for name, value in message.items()}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """Return the result that `as_message` wrote."""
        histograms = {name: Histogram.decode(message[name]) for name in ("latency", "errors", "lateness")}
        return cls(**{**message, **histograms, "outcomes": Counter(message["outcomes"])})

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values; times are in milliseconds."""
        return {
            "ok": self.lost == 0 and self.lost_connections == 0,
            "rate": self.rate,
            "seconds": round(self.seconds, 3),
            "shoppers": self.shoppers,
            "sent": self.sent,
            "outcomes": dict(sorted(self.outcomes.items())),
            "lost": self.lost,
            "cut": self.lost_connections,
            "latency_ms": self.latency.summary(),
            "goodput": round(self.goodput, 1),
            "driver": {
                "late_p99_ms": self.lateness.percentile(99),
                "core": round(self.core_share, 3),
                "priority": self.priority,
                "fault": self.invalid_reason,
            },
        }


def driver_invalid_reason(late_p99_ms: float, core: float) -> str | None:
    """Return why a driver this late and this busy invalidates its results, or `None`."""
    if late_p99_ms > MAX_LATENESS_MS:
        return f"the driver itself was late: p99 {late_p99_ms:.2f} ms (more than {MAX_LATENESS_MS:g} ms)"
    if core > MAX_CORE_SHARE:
        return f"the driver itself was busy: {core:.2f} of a core (more than {MAX_CORE_SHARE:g})"
    return None


def format_measurement(measured: Mapping[str, Any]) -> list[str]:
    """Format `Measurement.as_json()` as lines of text."""
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
        f"driver    p99 {driver['late_p99_ms']:.2f} ms late, {driver['core']:.2f} of a core, {driver['priority']}",
        *([f"          not valid: {driver['fault']}"] if driver["fault"] else []),
        *([f"          {measured['cut']} connections were lost"] if measured["cut"] else []),
    ]
