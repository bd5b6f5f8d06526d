"""Association rules: the measures of a rule, and exact counts of item sets in more baskets than fit in memory.

Pure: baskets are read through a function that can be called repeatedly, since counting may take several passes. Items
are numbers, the rarest first; a separate list has their names.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

Basket = Sequence[int]
"""The frequent items of a basket, in ascending order and without duplicates."""
Pair = tuple[int, int]
K = TypeVar("K", int, Pair)

COUNTERS: Final = 1_000_000
"""The greatest number of counters in memory (about 100 MB). Other sets are counted in further passes."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An association rule: baskets with all items of `left` also have `right`. `left` has one or two items, sorted.

    With N baskets, n(X) of which have all items of X: `support` is n(left and right) / N, `confidence` is
    n(left and right) / n(left), `lift` is confidence / (n(right) / N). Each is the float nearest to that fraction.
    """

    left: tuple[str, ...]
    right: str
    support: float
    confidence: float
    lift: float


def rule_measures(together: int, left: int, right: int, baskets: int) -> tuple[float, float, float]:
    """Return support, confidence and lift from the numbers of baskets with both sides, the left, the right, and all.

    Each result is one division of integers, which Python rounds correctly.
    """
    return together / baskets, together / left, together * baskets / (left * right)


def min_count(min_support: float, baskets: int) -> int:
    """Return the smallest count, at least 1, whose support in `baskets` is at least `min_support`.

    Supports are compared as floats, so a threshold equal to the printed support of a rule includes that rule.
    """
    count = max(1, math.ceil(min_support * baskets))
    while count > 1 and (count - 1) / baskets >= min_support:
        count -= 1
    while count / baskets < min_support:
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class ItemSetCounts:
    """The counts of the frequent sets of one, two and three items."""

    baskets: int
    """The number of all baskets."""
    names: Sequence[str]
    """The name of each item."""
    singles: Sequence[int]
    """The number of baskets with each item."""
    pairs: Mapping[int, Mapping[int, int]]
    """The number of baskets with both items, as `pairs[a][b]` with a < b."""
    triples: Mapping[Pair, Mapping[int, int]]
    """The number of baskets with all three items, as `triples[a, b][c]` with a < b < c."""

    def rules(self, min_confidence: float = 0.0) -> Iterator[Rule]:
        """Yield every rule with one or two items on the left and a confidence of at least `min_confidence`."""
        for first, row in self.pairs.items():
            for second, together in row.items():
                for left, right in ((first, second), (second, first)):
                    if together / self.singles[left] >= min_confidence:
                        yield self._rule((left,), right, together, self.singles[left])
        for (first, second), row in self.triples.items():
            for third, together in row.items():
                # Each subset of a frequent set is frequent, so the pair on the left is counted.
                for one, two, right in ((first, second, third), (first, third, second), (second, third, first)):
                    of_left = self.pairs[one][two]
                    if together / of_left >= min_confidence:
                        yield self._rule((one, two), right, together, of_left)

    def _rule(self, left: tuple[int, ...], right: int, together: int, of_left: int) -> Rule:
        names = tuple(sorted(self.names[item] for item in left))
        return Rule(names, self.names[right], *rule_measures(together, of_left, self.singles[right], self.baskets))


def count_pairs(
    read: Callable[[], Iterable[Basket]], least: int, *, counters: int = COUNTERS
) -> dict[int, dict[int, int]]:
    """Return the pairs in at least `least` baskets, with their counts."""

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
    """Return the sets of three in at least `least` baskets, with their counts; their pairs must be in `pairs`."""

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
    """Return the count of each item in the tails of each key, if it is at least `least`."""
    found: dict[K, dict[int, int]] = {}
    done: K | None = None
    while True:
        rows, dropped = _one_pass(tails(), done, counters)
        for key, row in rows.items():
            kept = {item: count for item, count in row.items() if count >= least}
            if kept:
                found[key] = kept
        if dropped is None:
            return found
        done = max(rows)


def _one_pass(
    tails: Iterable[tuple[K, Basket]], done: K | None, counters: int
) -> tuple[dict[K, Counter[int]], K | None]:
    """Return the counters of some keys above `done`, and the least key that was dropped (`None` if none was).

    A pass starts to count all remaining keys, and drops the greatest ones whenever there are more than `counters`
    counters. So the counts of the other keys are exact, and the next pass continues after them. Each pass completes at
    least one key, which has at most one counter per item.
    """
    rows: dict[K, Counter[int]] = {}
    dropped: K | None = None
    live = 0
    for key, tail in tails:
        if (done is not None and key <= done) or (dropped is not None and key >= dropped):
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
                dropped = greatest
                if live <= counters * 3 // 4:
                    break
    return rows, dropped
