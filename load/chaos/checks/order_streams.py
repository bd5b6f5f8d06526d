"""I7: every order is one stream of events with versions 1 to n, which ends once and equals all views of it. No I/O.

The rules of an order are deliberately written a second time, and shorter: a checker that used the order service's own
model would repeat its mistakes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from load.chaos.checks.observed_state import ObservedState, OrderEvent
from load.chaos.checks.violation import Violation
from load.chaos.history import NEMESIS, HistoryEntry

STATUS_AFTER: Final = {
    "placed": "placed",
    "committed": "committed",
    "captured": "paid",
    "confirmed": "confirmed",
    "shipped": "shipped",
    "delivered": "delivered",
    "cancelled": "cancelled",
}
"""Status that an event gives its order; other events leave the status unchanged."""
TERMINAL_TYPES: Final = frozenset({"delivered", "cancelled"})
AFTER_DELIVERY: Final = frozenset({"refund-asked", "refunded"})
SECOND_TYPES: Final = frozenset({"committed", "cancelled"})
COMMITTED_VERSION: Final = 2
"""Version at which an order is committed, if ever."""

Stream = Mapping[int, OrderEvent]
"""Events of an order by version; of two events at one version the first, since the second is a finding."""


def streams_by_order(state: ObservedState) -> dict[str, dict[int, OrderEvent]]:
    """Return the stream of each order, ordered by version."""
    found: dict[str, dict[int, OrderEvent]] = defaultdict(dict)
    for event in sorted(state.events, key=lambda event: event.version):
        found[event.order].setdefault(event.version, event)
    return found


def check_order_streams(history: Sequence[HistoryEntry], state: ObservedState) -> Iterator[Violation]:
    """Yield all violations in streams and in the views of orders."""
    streams = streams_by_order(state)
    for event in state.events:
        if event != streams[event.order][event.version]:
            yield Violation("I7", f"order {event.order} has two events at version {event.version}", _words(event))
    for stream in streams.values():
        yield from _check_stream(stream)
        yield from _check_end(stream)
    yield from _check_one_order_per_cart(streams)
    yield from _check_commits(streams, state)
    yield from _check_sent_frames(streams, history)
    yield from _check_lists(streams, state)


def _check_stream(stream: Stream) -> Iterator[Violation]:
    """Check that versions have no gap, start and end are valid, and each status follows from the events."""
    status, ended, cancelling = "", "", False
    for number, event in enumerate(stream.values(), 1):
        where = f"order {event.order} at version {event.version}"
        if event.version != number:
            yield Violation("I7", f"order {event.order} has no version {number}", _words(event))
            return
        if (number == 1) != (event.type == "placed") or (number == 2 and event.type not in SECOND_TYPES):  # noqa: PLR2004
            yield Violation("I7", f"{where} is {event.type}, which is not allowed there", _words(event))
        if ended and not (ended == "delivered" and event.type in AFTER_DELIVERY):
            yield Violation("I7", f"{where} is {event.type}, but it had already been {ended}", _words(event))
        cancelling = cancelling or event.type == "cancelling"
        folded = STATUS_AFTER.get(event.type, status)
        # A capture during a cancellation does not make the order paid.
        if event.status != folded and not (cancelling and event.status == status):
            yield Violation(
                "I7", f"{where}, {event.type}: status is {event.status}, by its events it is {folded}", _words(event)
            )
        status = event.status
        ended = event.type if event.type in TERMINAL_TYPES else ended


def _check_end(stream: Stream) -> Iterator[Violation]:
    last = list(stream.values())[-1]
    if not any(event.type in TERMINAL_TYPES for event in stream.values()):
        at = f"{last.type} at version {last.version}"
        yield Violation("ends", f"order {last.order} has not ended: {at}", _words(last))


def _check_one_order_per_cart(streams: Mapping[str, Stream]) -> Iterator[Violation]:
    """Check that one version of a cart becomes at most one order."""
    made: dict[tuple[str, int], str] = {}
    for order, stream in streams.items():
        first = next(iter(stream.values()))
        version = first.data.get("cart_version")
        if version is None or not any(event.type == "committed" for event in stream.values()):
            continue
        other = made.setdefault((first.user, version), order)
        if other != order:
            cart = f"the cart of {first.user} at version {version}"
            yield Violation("I7", f"{cart} became two orders, {other} and {order}", (first.user, order, other))


def _check_commits(streams: Mapping[str, Stream], state: ObservedState) -> Iterator[Violation]:
    """Check that an order is committed if and only if inventory's log says so, with the same total."""
    log = {outcome["order_id"]: outcome for outcome in state.log.values() if outcome["type"] == "committed"}
    for order, outcome in log.items():
        committed = next((event for event in streams.get(order, {}).values() if event.type == "committed"), None)
        if committed is None:
            yield Violation("I7", f"inventory committed order {order}, but its stream has no such event", (order,))
        elif committed.data.get("total") != outcome["total"]:
            total, logged = committed.data.get("total"), outcome["total"]
            yield Violation(
                "I7", f"order {order} is committed for {total}, by inventory's log it is {logged}", _words(committed)
            )
    for order, stream in streams.items():
        committed = next((event for event in stream.values() if event.type == "committed"), None)
        if committed is not None and order not in log:
            yield Violation("I7", f"order {order} is committed, but missing in inventory's log", _words(committed))


def _check_sent_frames(streams: Mapping[str, Stream], history: Sequence[HistoryEntry]) -> Iterator[Violation]:
    """Check that every status sent to a shopper is in the order's stream."""
    seen: set[tuple[str, int, str]] = set()
    for entry, frame in order_frames(history):
        order, version, status = frame["order_id"], frame.get("order_version", 0), frame.get("status", "")
        if (order, version, status) in seen:
            continue
        seen.add((order, version, status))
        words = (order, *filter(None, (entry.id, entry.user)))
        if order not in streams:
            yield Violation("I7", f"{entry.user} was sent order {order}, which has no stream", words)
        elif version and version not in streams[order]:
            yield Violation("I7", f"order {order} was sent at version {version}, which does not exist", words)
        elif version and streams[order][version].status != status:
            actual = streams[order][version].status
            yield Violation(
                "I7", f"order {order} was sent as {status} at version {version}, by its events it was {actual}", words
            )


def _check_lists(streams: Mapping[str, Stream], state: ObservedState) -> Iterator[Violation]:
    """Check that each order as its shopper reads it follows from its events."""
    for order, stream in streams.items():
        last = list(stream.values())[-1]
        read = state.orders.get(order)
        if read is None:
            yield Violation("I7", f"order {order} is missing in the list that {last.user} reads", _words(last))
            continue
        reason = next((event.data.get("reason") for event in stream.values() if event.type == "cancelled"), None)
        actual = (last.status, last.version, reason)
        shown = (read["status"], read["order_version"], read.get("reason"))
        if shown != actual:
            yield Violation("I7", f"order {order} is read as {shown}, by its events it is {actual}", _words(last))
    for order in state.orders.keys() - streams.keys():
        yield Violation("I7", f"order {order} is listed, but has no stream", (order,))


def check_order_versions(history: Sequence[HistoryEntry]) -> Iterator[Violation]:
    """Check that statuses of an order that are new to a shopper arrive in ascending order.

    A frame may be repeated unchanged. Version 2 comes from the cart service and later ones from the order service, so
    only version 2 may be overtaken, if the cart service was down. The answer to a cancellation has an id of its own,
    has the status when the cancellation was accepted, and may arrive after later updates. Nothing is checked after a
    replay of topics.
    """
    newest: dict[tuple[str, str, str], int] = defaultdict(int)
    sent: set[tuple[str, str, int]] = set()
    for entry, frame in order_frames(_before_replays(history)):
        version, order, user = frame.get("order_version"), frame["order_id"], entry.user or ""
        if not entry.session or version is None or frame.get("replayed") or (user, order, version) in sent:
            continue
        sent.add((user, order, version))
        about = user, order, frame["id"]
        if COMMITTED_VERSION < version < newest[about]:
            words = (order, user, *filter(None, (entry.id,)))
            yield Violation(
                "I7", f"order {order} went back from version {newest[about]} to {version} for {user}", words
            )
        newest[about] = max(newest[about], version)


def _before_replays(history: Sequence[HistoryEntry]) -> Iterator[HistoryEntry]:
    for entry in history:
        if entry.proc == NEMESIS and entry.f.startswith("replay"):
            return
        yield entry


def order_frames(history: Iterable[HistoryEntry]) -> Iterator[tuple[HistoryEntry, Mapping[str, Any]]]:
    """Yield every message to a client about an order: frames, and answers to requests with an order id."""
    for entry in history:
        if entry.type in {"ok", "heard"} and entry.value.get("order_id"):
            yield entry, entry.value


def _words(event: OrderEvent) -> tuple[str, ...]:
    return event.order, event.user
