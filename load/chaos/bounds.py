"""Was what a shopper was told about the stock possible at all?

What a shopper keeps of a product is a register whose values have versions, those of the ledger. While a question is
open, it can have had the value of the last change that was surely done before the question, or of any later one that
was begun before the answer. Summed over all shoppers this bounds what was kept, and so what can have been available.
The cost is a sort and a scan for each question; no search over orders is needed, since versions give the order.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from load.chaos.history import NEMESIS, Entry
from load.chaos.truth import Key, Truth


@dataclass(frozen=True, slots=True)
class Value:
    """A value that a register had, and between which two instants it got it (nanoseconds)."""

    version: int
    begun: float
    done: float
    quantity: int


@dataclass(frozen=True, slots=True)
class Broken:
    """A number that cannot have been."""

    product: str
    id: str
    detail: str


def broken(history: Sequence[Entry], truth: Truth) -> Iterator[Broken]:
    """Every answer about stock that was not possible while its question was open."""
    received: dict[str, int] = defaultdict(int)
    for row in truth.ledger:
        if row.user is None:  # what an order gives back is in the register of its shopper
            received[row.product] += row.received
    lines = values(history, truth)
    begun = _first(history, "invoke")
    seen: set[Key] = set()
    for entry in history:
        if entry.type != "ok" or entry.user is None or entry.id is None or entry.value.get("available") is None:
            continue
        key, product = (entry.user, entry.id), str(entry.value.get("product"))
        if key in seen or key not in begun or product not in received:
            continue
        seen.add(key)
        least = most = 0
        for register in lines[product].values():
            low, high = possible(register, begun[key], entry.t_ns)
            least, most = least + low, most + high
        told, units = int(entry.value["available"]), received[product]
        if not units - most <= told <= units - least:
            yield Broken(
                product,
                entry.id,
                f"{entry.user} was told {told} of {product}, {units - most} to {units - least} it was",
            )


def possible(register: Sequence[Value], begun: float, done: float) -> tuple[int, int]:
    """The least and the greatest value that a register can have had between two instants; it is 0 before its first."""
    last = max((value for value in register if value.done <= begun), key=lambda value: value.version, default=None)
    quantities = [last.quantity if last else 0]
    after = last.version if last else -1
    quantities += [value.quantity for value in register if value.version > after and value.begun <= done]
    return min(quantities), max(quantities)


def values(history: Sequence[Entry], truth: Truth) -> dict[str, dict[str, list[Value]]]:
    """Product → shopper → what the ledger says they kept from others, also by requests whose answer nobody heard.

    Units in the cart, kept for an order or sold to it are all the same here: others cannot have them.
    """
    begun, done = _first(history, "invoke"), _first(history, "ok")
    forced = {
        user: entry.t_ns
        for entry in reversed(history)
        if entry.proc == NEMESIS and entry.type == "invoke"
        for user in entry.value.get("users", ())
    }
    heard = _heard_expiries(history)
    lines: dict[str, dict[str, list[Value]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(truth.ledger, key=lambda row: (row.product, row.version)):
        if row.user is None or row.id is None:
            continue
        key, register = (row.user, row.id), lines[row.product][row.user]
        outcome = truth.log.get(key, {})
        start: float = begun.get(key, 0)
        end: float = done.get(key, math.inf)
        if outcome.get("type") == "expired":
            start, end = forced.get(row.user, 0), heard.get((row.user, outcome["version"]), math.inf)
        before = register[-1].quantity if register else 0
        register.append(Value(row.version, start, end, before + row.held + row.sold - row.received))
    return lines


def _heard_expiries(history: Sequence[Entry]) -> dict[tuple[str, int], int]:
    return {
        (entry.user, entry.value["version"]): entry.t_ns
        for entry in reversed(history)
        if entry.user and entry.type == "heard" and entry.value.get("type") == "expired"
    }


def _first(history: Sequence[Entry], type_: str) -> dict[Key, int]:
    """When each request was first written down as `type_`."""
    return {
        (entry.user, entry.id): entry.t_ns
        for entry in reversed(history)
        if entry.type == type_ and entry.user and entry.id and entry.proc != NEMESIS
    }
