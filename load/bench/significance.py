"""Decide when two series of measurements yield a ratio and when they are only noise. No I/O.

A pair is a value of the shop and one of the base, measured one after the other in one round. A pair counts if neither
value is invalid (for example because the driver was late) and its base is within a quarter of the median base. A ratio
needs three such pairs; with fewer the result is a sentence with the reason.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

MAX_DRIFT: Final = 0.25
MIN_PAIRS: Final = 3


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two values of one round; `invalid_reason` is the reason if they are not valid."""

    ours: float
    base: float
    invalid_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Shop divided by base, over the pairs that count."""

    spread: Spread
    pairs: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Inconclusive:
    """Inconclusive result, with the reason."""

    reason: str


def spread(values: Sequence[float]) -> Spread | None:
    """Return median and range, or `None` if there are no values."""
    return Spread(median(values), min(values), max(values)) if values else None


def compare(pairs: Sequence[Pair], *, needed: int = MIN_PAIRS) -> Ratio | Inconclusive:
    """Return the ratio of these pairs, or why there is none."""
    valid = [pair for pair in pairs if pair.invalid_reason is None and pair.base > 0]
    base_median = median(pair.base for pair in valid) if valid else 0.0
    steady = [pair for pair in valid if abs(pair.base - base_median) <= MAX_DRIFT * base_median]
    found = spread([pair.ours / pair.base for pair in steady])
    if found is not None and len(steady) >= needed:
        return Ratio(found, len(steady), len(pairs) - len(steady))
    reasons = []
    if len(steady) < len(valid):
        bases = [pair.base for pair in valid]
        reasons.append(f"the base drifted between {min(bases):.4g} and {max(bases):.4g}, more than {MAX_DRIFT:.0%}")
    reasons += sorted({pair.invalid_reason for pair in pairs if pair.invalid_reason is not None})[:1]
    if any(pair.invalid_reason is None and pair.base <= 0 for pair in pairs):
        reasons.append("the base is zero")
    explanation = f": {'; '.join(reasons)}" if reasons else ""
    return Inconclusive(
        f"could not be trusted: {len(steady)} of {len(pairs)} pairs count, {needed} are needed{explanation}"
    )


# ---- the knee -------------------------------------------------------------------------------------------------------

KNEE_MS: Final = 50.0
FIRST_RATE: Final = 250.0
RATES: Final = (5.0, 16_000.0)
BISECTIONS: Final = 2


def next_rate(tried: Mapping[float, bool], *, first: float = FIRST_RATE, bisections: int = BISECTIONS) -> float | None:
    """Return the next rate to try, given which rates were within the bounds; `None` when the knee is known.

    Starting from `first`, the rate doubles while it succeeds, or halves until it does, and then bisects the gap by
    ratio.
    """
    if not tried:
        return first
    good = [rate for rate, succeeded in tried.items() if succeeded]
    bad = [rate for rate, succeeded in tried.items() if not succeeded]
    if not bad:
        return max(good) * 2 if max(good) * 2 <= RATES[1] else None
    if not good:
        return min(bad) / 2 if min(bad) / 2 >= RATES[0] else None
    low, high = max(good), min(bad)
    # Each bisection takes the square root of the gap, which started at 2.
    if low >= high or high / low <= 2 ** (0.5**bisections) * 1.001:
        return None
    return float(round(math.sqrt(low * high)))


def knee(tried: Mapping[float, bool]) -> float:
    """Return the highest rate within the bounds, or 0 if none was."""
    return max((rate for rate, succeeded in tried.items() if succeeded), default=0.0)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the log-log slope by least squares, or `None` without two sizes above 0. 0 is constant, 1 is linear."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:  # noqa: PLR2004 - a line needs two points
        return None
    mean_x, mean_y = fmean(x for x, _ in logs), fmean(y for _, y in logs)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return rise / math.fsum((x - mean_x) ** 2 for x, _ in logs)
