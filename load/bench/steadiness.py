"""Rule for the end of a warm-up: two consecutive windows of load agree. No clock, no I/O.

A Java broker compiles its hot paths while it runs, and pools, caches and branch predictors fill. A fixed warm-up is too
short on one machine and too long on another, so load is repeated in windows until a window is like the one before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Window = Mapping[str, float]
"""Figures of one window of warm-up load, such as `p50` in milliseconds."""


@dataclass(frozen=True, slots=True)
class Steadiness:
    """When a side is warm: each figure of its last window is within `tolerance` of the window before."""

    tolerance: float = 0.1
    """Permitted change, as a share of the larger value."""
    most_windows: int = 8
    """Bound: after this many windows the measurement begins although the side is not steady."""


DEFAULT_STEADINESS: Final = Steadiness()


def largest_change(before: Window, after: Window) -> tuple[str, float]:
    """Return the figure that changed most between two windows, and its change as a share of the larger value.

    A figure that only one window has counts as changed completely.
    """
    changes = {name: _change(before.get(name, 0.0), after.get(name, 0.0)) for name in {**before, **after}}
    return max(changes.items(), key=lambda item: item[1], default=("", 0.0))


def _change(before: float, after: float) -> float:
    most = max(abs(before), abs(after))
    return abs(after - before) / most if most else 0.0


def has_settled(windows: Sequence[Window], rule: Steadiness) -> bool:
    """Return True if the last two windows agree."""
    return len(windows) > 1 and largest_change(windows[-2], windows[-1])[1] <= rule.tolerance


def describe_windows(windows: Sequence[Window], rule: Steadiness) -> dict[str, Any]:
    """Return the windows and their verdict as JSON values; `figure` and `change` are the largest change at the end."""
    figure, change = largest_change(windows[-2], windows[-1]) if len(windows) > 1 else ("", 1.0)
    return {
        "windows": [dict(window) for window in windows],
        "steady": has_settled(windows, rule),
        "figure": figure,
        "change": round(change, 3),
    }


def warm_up_sentence(record: Mapping[str, Any], rule: Steadiness) -> str:
    """Return what a report says about a warm-up: how long it took, and which sides were not steady at its end."""
    if not record:
        return ""
    number = max(len(side["windows"]) for side in record.values())
    unsteady = [
        f"{name} was not steady ({side['figure']} still changed by {side['change']:.0%})"
        if side["figure"]
        else f"{name} was not checked"
        for name, side in record.items()
        if not side["steady"]
    ]
    windows = f"{number} window{'s' if number > 1 else ''} of load for each side"
    if not unsteady:
        return f"Warm-up: {windows}, until two consecutive ones agreed within {rule.tolerance:.0%}."
    return f"Warm-up: {windows}; at this bound {'; '.join(unsteady)}."
