"""When an open loop sends, and how many shoppers it takes: arithmetic, without a clock.

An open loop sends at instants that are fixed beforehand, whatever the shop does; a latency counts from the intended
instant. A loop that waits for answers would ask less of a slow shop, and measure only its good moments ("coordinated
omission", Gil Tene's wrk2).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

Arrivals = Literal["constant", "poisson"]

MINUTE: Final = 60.0
FEWEST_SHOPPERS: Final = 10
LAST_CHANGES: Final = 1
"""Changes that each shopper makes after the measurement: it empties its cart."""


def instants(rate: float, seconds: float, arrivals: Arrivals, chance: Callable[[], float]) -> Iterator[float]:
    """The intended send times in seconds from the start, in order; `chance` is uniform in [0, 1)."""
    if arrivals == "constant":
        yield from (number / rate for number in range(round(rate * seconds)))
        return
    at = 0.0
    while (at := at - math.log(1.0 - chance()) / rate) < seconds:
        yield at


def shoppers_needed(rate: float, seconds: float, changes_a_minute: int | None) -> int:
    """How many shoppers may make `rate` changes a second for `seconds`, taking turns.

    Each may make `changes_a_minute` at once and as many again a minute; None: no limit.
    """
    if changes_a_minute is None:
        return 1
    each = changes_a_minute + int(changes_a_minute * seconds / MINUTE) - LAST_CHANGES
    # Arrivals at random instants are more than the mean now and then.
    return math.ceil(rate * seconds * 1.05 / max(1, each))


def usual_shoppers(rate: float, seconds: float, changes_a_minute: int | None) -> int:
    """How many come when nobody says: enough for the limits, and no one of them busier than a person could be."""
    return max(FEWEST_SHOPPERS, math.ceil(0.6 * rate), shoppers_needed(rate, seconds, changes_a_minute))


class Baskets:
    """What each shopper asks for next, so that stock and carts last.

    A shopper of a `mixed` crowd puts a product in until it has asked for three, and from then on takes the oldest out
    and puts another in, in turn. In a crowd that only adds, each keeps to three products of its own, one unit more at
    a time.
    """

    LINES: Final = 3

    def __init__(self, shoppers: int, products: Sequence[str], *, mixed: bool, choose: Callable[[int], int]) -> None:
        self._products = products
        self._mixed = mixed
        self._choose = choose
        self._asked: list[list[str]] = [[] for _ in range(shoppers)]

    def next(self, shopper: int) -> tuple[str, str]:
        """`("add" | "remove", product)` for the shopper of this number; `choose(n)` picks one of n."""
        asked = self._asked[shopper]
        if len(asked) < self.LINES:
            asked.append(self._products[self._choose(len(self._products))])
            return "add", asked[-1]
        if self._mixed:
            return "remove", asked.pop(0)
        asked.append(asked.pop(0))
        return "add", asked[-1]
