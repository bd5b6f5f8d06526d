"""When two series of measurements make a ratio, and when they only make noise. Pure.

A pair is ours and the base, measured one after the other in one round. It counts when neither has a fault of its own (a
late driver) and its base is within a quarter of the base's median; a ratio needs three such pairs. Fewer make no ratio,
but a sentence that says why.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

DRIFT: Final = 0.25
NEEDED: Final = 3


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its range."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One round's two numbers; `fault` says why they can't be believed."""

    ours: float
    base: float
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours divided by the base, over the pairs that count."""

    spread: Spread
    pairs: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Distrust:
    """No ratio, and why."""

    reason: str


def spread(values: Sequence[float]) -> Spread | None:
    """Median and range; None of nothing."""
    return Spread(median(values), min(values), max(values)) if values else None


def compare(pairs: Sequence[Pair], *, needed: int = NEEDED) -> Ratio | Distrust:
    """The ratio that these pairs make, or why they make none."""
    sound = [pair for pair in pairs if pair.fault is None and pair.base > 0]
    middle = median(pair.base for pair in sound) if sound else 0.0
    steady = [pair for pair in sound if abs(pair.base - middle) <= DRIFT * middle]
    found = spread([pair.ours / pair.base for pair in steady])
    if found is not None and len(steady) >= needed:
        return Ratio(found, len(steady), len(pairs) - len(steady))
    reasons = []
    if len(steady) < len(sound):
        bases = [pair.base for pair in sound]
        reasons.append(f"the base drifted between {min(bases):.4g} and {max(bases):.4g}, more than {DRIFT:.0%}")
    reasons += sorted({pair.fault for pair in pairs if pair.fault is not None})[:1]
    if any(pair.fault is None and pair.base <= 0 for pair in pairs):
        reasons.append("the base is zero")
    why = f": {'; '.join(reasons)}" if reasons else ""
    return Distrust(f"could not be trusted: {len(steady)} of {len(pairs)} pairs count, {needed} are needed{why}")


# ---- the knee -------------------------------------------------------------------------------------------------------

KNEE_MS: Final = 50.0
FIRST_RATE: Final = 250.0
RATES: Final = (5.0, 16_000.0)
BISECTIONS: Final = 2


def next_rate(tried: Mapping[float, bool], *, first: float = FIRST_RATE, bisections: int = BISECTIONS) -> float | None:
    """The next rate to try when some were (`rate: whether it was within the bounds`); None when the knee is known.

    From `first` it doubles while that goes well, or halves until it does, then halves the gap by ratio.
    """
    if not tried:
        return first
    good = [rate for rate, well in tried.items() if well]
    bad = [rate for rate, well in tried.items() if not well]
    if not bad:
        return max(good) * 2 if max(good) * 2 <= RATES[1] else None
    if not good:
        return min(bad) / 2 if min(bad) / 2 >= RATES[0] else None
    low, high = max(good), min(bad)
    # Each bisection takes the root of the gap, which was 2.
    if low >= high or high / low <= 2 ** (0.5**bisections) * 1.001:
        return None
    return float(round(math.sqrt(low * high)))


def knee(tried: Mapping[float, bool]) -> float:
    """The highest rate that was within the bounds; 0 when none was."""
    return max((rate for rate, well in tried.items() if well), default=0.0)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The log-log slope by least squares: 0 does not grow, 1 grows with the size; None without two sizes above 0."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:  # noqa: PLR2004 - a line has two ends
        return None
    mean_x, mean_y = fmean(x for x, _ in logs), fmean(y for _, y in logs)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return rise / math.fsum((x - mean_x) ** 2 for x, _ in logs)
