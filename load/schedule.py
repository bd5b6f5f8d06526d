"""Send times of the open loop and the number of shoppers it needs: arithmetic without a clock.

An open loop sends at times that are fixed beforehand, regardless of the shop's speed; a latency counts from the
intended time. A loop that waits for answers would send less to a slow shop and measure only its good moments
("coordinated omission", Gil Tene's wrk2).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

Arrivals = Literal["constant", "poisson"]

MINUTE: Final = 60.0
MIN_SHOPPERS: Final = 10
CLEANUP_CHANGES: Final = 1
"""Changes that each shopper makes after the measurement: it clears its cart."""


def send_times(rate: float, seconds: float, arrivals: Arrivals, chance: Callable[[], float]) -> Iterator[float]:
    """Yield the intended send times in seconds from the start, ascending; `chance` is uniform in [0, 1)."""
    if arrivals == "constant":
        yield from (number / rate for number in range(round(rate * seconds)))
        return
    at = 0.0
    while (at := at - math.log(1.0 - chance()) / rate) < seconds:
        yield at


def shoppers_needed(rate: float, seconds: float, changes_a_minute: int | None) -> int:
    """Return how many shoppers may make `rate` changes per second for `seconds`, taking turns.

    Each may make `changes_a_minute` at once and as many again per minute; `None` means no limit.
    """
    if changes_a_minute is None:
        return 1
    each = changes_a_minute + int(changes_a_minute * seconds / MINUTE) - CLEANUP_CHANGES
    # Random arrivals exceed the mean now and then.
    return math.ceil(rate * seconds * 1.05 / max(1, each))


def default_shoppers(rate: float, seconds: float, changes_a_minute: int | None) -> int:
    """Return the default number of shoppers: enough for the limits, and none busier than a person could be."""
    return max(MIN_SHOPPERS, math.ceil(0.6 * rate), shoppers_needed(rate, seconds, changes_a_minute))


class RequestMix:
    """Generator of each shopper's next request, chosen so that stock and carts last.

    A `mixed` shopper adds products until it has requested three, and then alternately removes the oldest and adds
    another. Other shoppers only add: each keeps to three products and adds one unit at a time. `choose(n)` returns an
    index below n.
    """

    MAX_LINES: Final = 3

    def __init__(self, shoppers: int, products: Sequence[str], *, mixed: bool, choose: Callable[[int], int]) -> None:
        self._products = products
        self._mixed = mixed
        self._choose = choose
        self._requested: list[list[str]] = [[] for _ in range(shoppers)]

    def next_request(self, shopper: int) -> tuple[str, str]:
        """Return `("add" | "remove", product)` for the shopper of this number."""
        requested = self._requested[shopper]
        if len(requested) < self.MAX_LINES:
            requested.append(self._products[self._choose(len(self._products))])
            return "add", requested[-1]
        if self._mixed:
            return "remove", requested.pop(0)
        requested.append(requested.pop(0))
        return "add", requested[-1]
