"""What is bought together: the measures of a rule, and the exact counting of sets in more baskets than memory holds.

Pure: baskets are read through a function that can be called again, since counting may take several passes. Items are
numbers here, the rarest first; what they are called stands beside them.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

Basket = Sequence[int]
"""The items of a basket that are frequent enough by themselves, ascending, each once."""
Pair = tuple[int, int]
K = TypeVar("K", int, Pair)

COUNTERS: Final = 1_000_000
"""Counters that may live at once: some 100 MB. What does not fit is counted in another pass."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Baskets with all of `left` have `right` too, in so many cases. `left` has one or two items, in their order.

    Of N baskets, n(X) of which have all items of X: `support` is n(left and right) / N, `confidence` is
    n(left and right) / n(left), `lift` is confidence / (n(right) / N). Each is the float nearest to that fraction.
    """

    left: tuple[str, ...]
    right: str
    support: float
    confidence: float
    lift: float


def measures(together: int, left: int, right: int, baskets: int) -> tuple[float, float, float]:
    """Support, confidence and lift of a rule, from the baskets with both sides, with the left, with the right, and all.

    Whole numbers are divided once, at the end, and Python rounds such a quotient correctly.
    """
    return together / baskets, together / left, together * baskets / (left * right)


def least_count(min_support: float, baskets: int) -> int:
    """The smallest number of `baskets` that is a support of at least `min_support`.

    Never 0: what was never seen together is no rule. A share and the float that is written for it are the same.
    """
    count = max(1, math.ceil(min_support * baskets))
    while count > 1 and (count - 1) / baskets >= min_support:
        count -= 1
    while count / baskets < min_support:
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Counted:
    """How many of `baskets` have each set of one, two and three items that is frequent enough.

    A set is named by its items in ascending order: `pairs[a][b]`, `triples[a, b][c]` with a < b < c.
    """

    baskets: int
    names: Sequence[str]
    singles: Sequence[int]
    pairs: Mapping[int, Mapping[int, int]]
    triples: Mapping[Pair, Mapping[int, int]]

    def rules(self, min_confidence: float = 0.0) -> Iterator[Rule]:
        """Every rule with one or two items on the left that these counts make, at `min_confidence` or above."""
        for first, row in self.pairs.items():
            for second, together in row.items():
                for left, right in ((first, second), (second, first)):
                    if together / self.singles[left] >= min_confidence:
                        yield self._rule((left,), right, together, self.singles[left])
        for (first, second), row in self.triples.items():
            for third, together in row.items():
                # Whatever is in a frequent set is frequent itself, so the pair on the left has been counted.
                for one, two, right in ((first, second, third), (first, third, second), (second, third, first)):
                    of_left = self.pairs[one][two]
                    if together / of_left >= min_confidence:
                        yield self._rule((one, two), right, together, of_left)

    def _rule(self, left: tuple[int, ...], right: int, together: int, of_left: int) -> Rule:
        names = tuple(sorted(self.names[item] for item in left))
        return Rule(names, self.names[right], *measures(together, of_left, self.singles[right], self.baskets))


def count_pairs(
    read: Callable[[], Iterable[Basket]], least: int, *, counters: int = COUNTERS
) -> dict[int, dict[int, int]]:
    """The pairs that at least `least` baskets have, with how many have them."""

    def tails() -> Iterator[tuple[int, Basket]]:
        for basket in read():
            for place, item in enumerate(basket, 1):
                if place < len(basket):
                    yield item, basket[place:]

    return _count(tails, least, counters)


def count_triples(
    read: Callable[[], Iterable[Basket]],
    pairs: Mapping[int, Mapping[int, int]],
    least: int,
    *,
    counters: int = COUNTERS,
) -> dict[Pair, dict[int, int]]:
    """The sets of three that at least `least` baskets have; only sets whose three `pairs` are frequent are counted."""

    def tails() -> Iterator[tuple[Pair, Basket]]:
        for basket in read():
            for place, first in enumerate(basket, 1):
                with_first = pairs.get(first)
                if not with_first:
                    continue
                seconds = [item for item in basket[place:] if item in with_first]
                for start, second in enumerate(seconds, 1):
                    with_second = pairs.get(second)
                    thirds = [item for item in seconds[start:] if item in with_second] if with_second else ()
                    if thirds:
                        yield (first, second), thirds

    return _count(tails, least, counters) if pairs else {}


def _count(tails: Callable[[], Iterable[tuple[K, Basket]]], least: int, counters: int) -> dict[K, dict[int, int]]:
    """For each key, how often each item stands in its tails, where that is at least `least`."""
    found: dict[K, dict[int, int]] = {}
    done: K | None = None
    while True:
        rows, given_up = _one_pass(tails(), done, counters)
        for key, row in rows.items():
            kept = {item: count for item, count in row.items() if count >= least}
            if kept:
                found[key] = kept
        if given_up is None:
            return found
        done = max(rows)


def _one_pass(
    tails: Iterable[tuple[K, Basket]], done: K | None, counters: int
) -> tuple[dict[K, Counter[int]], K | None]:
    """The counters of some keys above `done`, and the least key that was given up; none when these are all.

    A pass begins with all keys that are left and gives up the greatest whenever more than `counters` live. So what it
    has at its end is exact, and the next goes on behind it. It finishes one key at least, which has no more counters
    than there are items.
    """
    rows: dict[K, Counter[int]] = {}
    given_up: K | None = None
    live = 0
    for key, tail in tails:
        if (done is not None and key <= done) or (given_up is not None and key >= given_up):
            continue
        row = rows.get(key)
        if row is None:
            row = rows[key] = Counter()
        before = len(row)
        row.update(tail)
        live += len(row) - before
        if live > counters and len(rows) > 1:
            for greatest in sorted(rows, reverse=True)[:-1]:
                live -= len(rows.pop(greatest))
                given_up = greatest
                if live <= counters * 3 // 4:
                    break
    return rows, given_up
