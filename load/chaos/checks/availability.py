"""Check that each available quantity reported to a shopper was possible at that time.

The quantity that a shopper keeps of a product is a register whose values have versions: those of the ledger. While a
question is open, the register can have the value of the last change known to be done before the question, or of any
later change begun before the answer. The sum over all shoppers bounds the quantity kept, and so the available quantity.
The cost is a sort and a scan per question. No search over orderings is needed, since versions give the order.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from load.chaos.checks.observed_state import Key, ObservedState
from load.chaos.history import NEMESIS, HistoryEntry


@dataclass(frozen=True, slots=True)
class RegisterValue:
    """Value of a register and the interval in which it was set (nanoseconds)."""

    version: int
    begun: float
    done: float
    quantity: int


@dataclass(frozen=True, slots=True)
class ImpossibleReport:
    """Reported quantity that was not possible."""

    product: str
    id: str
    detail: str


def impossible_reports(history: Sequence[HistoryEntry], state: ObservedState) -> Iterator[ImpossibleReport]:
    """Yield every reported quantity that was not possible while its question was open."""
    received: dict[str, int] = defaultdict(int)
    for row in state.ledger:
        if row.user is None:  # units restocked by an order count in its shopper's register
            received[row.product] += row.received
    registers = build_registers(history, state)
    started = _first_times(history, "invoke")
    seen: set[Key] = set()
    for entry in history:
        if entry.type != "ok" or entry.user is None or entry.id is None or entry.value.get("available") is None:
            continue
        key, product = (entry.user, entry.id), str(entry.value.get("product"))
        if key in seen or key not in started or product not in received:
            continue
        seen.add(key)
        least = most = 0
        for register in registers[product].values():
            low, high = possible_range(register, started[key], entry.t_ns)
            least, most = least + low, most + high
        reported, units = int(entry.value["available"]), received[product]
        if not units - most <= reported <= units - least:
            yield ImpossibleReport(
                product,
                entry.id,
                f"{entry.user} was shown {reported} of {product}, possible were {units - most} to {units - least}",
            )


def possible_range(register: Sequence[RegisterValue], started: float, done: float) -> tuple[int, int]:
    """Return the least and the greatest value a register can have had between two instants; initially it is 0."""
    last = max((value for value in register if value.done <= started), key=lambda value: value.version, default=None)
    quantities = [last.quantity if last else 0]
    after = last.version if last else -1
    quantities += [value.quantity for value in register if value.version > after and value.begun <= done]
    return min(quantities), max(quantities)


def build_registers(history: Sequence[HistoryEntry], state: ObservedState) -> dict[str, dict[str, list[RegisterValue]]]:
    """Return, by product and shopper, the quantities kept according to the ledger, also by requests without an answer.

    Units in the cart, kept for an order or sold to it count alike: other shoppers cannot have them.
    """
    started, done = _first_times(history, "invoke"), _first_times(history, "ok")
    forced_expiry = {
        user: entry.t_ns
        for entry in reversed(history)
        if entry.proc == NEMESIS and entry.type == "invoke"
        for user in entry.value.get("users", ())
    }
    expiry_times = _received_expiries(history)
    registers: dict[str, dict[str, list[RegisterValue]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(state.ledger, key=lambda row: (row.product, row.version)):
        if row.user is None or row.id is None:
            continue
        key, register = (row.user, row.id), registers[row.product][row.user]
        outcome = state.log.get(key, {})
        start: float = started.get(key, 0)
        end: float = done.get(key, math.inf)
        if outcome.get("type") == "expired":
            start, end = forced_expiry.get(row.user, 0), expiry_times.get((row.user, outcome["version"]), math.inf)
        before = register[-1].quantity if register else 0
        register.append(RegisterValue(row.version, start, end, before + row.held + row.sold - row.received))
    return registers


def _received_expiries(history: Sequence[HistoryEntry]) -> dict[tuple[str, int], int]:
    return {
        (entry.user, entry.value["version"]): entry.t_ns
        for entry in reversed(history)
        if entry.user and entry.type == "heard" and entry.value.get("type") == "expired"
    }


def _first_times(history: Sequence[HistoryEntry], type_: str) -> dict[Key, int]:
    """Return when each request was first recorded with this type."""
    return {
        (entry.user, entry.id): entry.t_ns
        for entry in reversed(history)
        if entry.type == type_ and entry.user and entry.id and entry.proc != NEMESIS
    }
