"""I7: every order is one stream of events, 1 to n, which ends once, and is what its shopper was told and reads. Pure.

The rules of an order stand here a second time, and shorter, on purpose: a checker that asked the order service's own
model would forgive its mistakes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from load.chaos.finding import Finding
from load.chaos.history import NEMESIS, Entry
from load.chaos.truth import OrderEvent, Truth

BECOMES: Final = {
    "placed": "placed",
    "committed": "committed",
    "captured": "paid",
    "confirmed": "confirmed",
    "shipped": "shipped",
    "delivered": "delivered",
    "cancelled": "cancelled",
}
"""The status that an event gives its order; any other leaves it as it was."""
ENDS: Final = frozenset({"delivered", "cancelled"})
AFTER_DELIVERY: Final = frozenset({"refund-asked", "refunded"})
SECOND: Final = frozenset({"committed", "cancelled"})
COMMITTED: Final = 2
"""The version at which an order is committed, if it ever is."""

Stream = Mapping[int, OrderEvent]
"""The events of an order by version; of two at one version the first, which is a finding of its own."""


def streams_of(truth: Truth) -> dict[str, dict[int, OrderEvent]]:
    """Order → its stream, in the order of versions."""
    found: dict[str, dict[int, OrderEvent]] = defaultdict(dict)
    for event in sorted(truth.events, key=lambda event: event.version):
        found[event.order].setdefault(event.version, event)
    return found


def whole(history: Sequence[Entry], truth: Truth) -> Iterator[Finding]:
    """Everything that is wrong with streams, and with what was told of them."""
    streams = streams_of(truth)
    for event in truth.events:
        if event != streams[event.order][event.version]:
            yield Finding("I7", f"order {event.order} has two events at version {event.version}", _words(event))
    for stream in streams.values():
        yield from _lawful(stream)
        yield from _ended(stream)
    yield from _of_one_cart(streams)
    yield from _decided(streams, truth)
    yield from _told(streams, history)
    yield from _read(streams, truth)


def _lawful(stream: Stream) -> Iterator[Finding]:
    """Versions without a gap, a lawful beginning, nothing after the end, and the status that its events make."""
    status, ended, cancelling = "", "", False
    for number, event in enumerate(stream.values(), 1):
        where = f"order {event.order} at version {event.version}"
        if event.version != number:
            yield Finding("I7", f"order {event.order} has no version {number}", _words(event))
            return
        if (number == 1) != (event.type == "placed") or (number == 2 and event.type not in SECOND):  # noqa: PLR2004
            yield Finding("I7", f"{where} is {event.type}", _words(event))
        if ended and not (ended == "delivered" and event.type in AFTER_DELIVERY):
            yield Finding("I7", f"{where} is {event.type}, it was {ended} already", _words(event))
        cancelling = cancelling or event.type == "cancelling"
        folded = BECOMES.get(event.type, status)
        # Money that comes while an order is being cancelled makes no paid order of it.
        if event.status != folded and not (cancelling and event.status == status):
            yield Finding(
                "I7", f"{where}, {event.type}: says {event.status}, its events make it {folded}", _words(event)
            )
        status = event.status
        ended = event.type if event.type in ENDS else ended


def _ended(stream: Stream) -> Iterator[Finding]:
    last = list(stream.values())[-1]
    if not any(event.type in ENDS for event in stream.values()):
        at = f"{last.type} at version {last.version}"
        yield Finding("ends", f"order {last.order} is neither delivered nor cancelled, but {at}", _words(last))


def _of_one_cart(streams: Mapping[str, Stream]) -> Iterator[Finding]:
    """A cart at a version becomes one order, however many tabs ask."""
    made: dict[tuple[str, int], str] = {}
    for order, stream in streams.items():
        first = next(iter(stream.values()))
        version = first.data.get("cart_version")
        if version is None or not any(event.type == "committed" for event in stream.values()):
            continue
        other = made.setdefault((first.user, version), order)
        if other != order:
            cart = f"the cart of {first.user} at version {version}"
            yield Finding("I7", f"{cart} became two orders, {other} and {order}", (first.user, order, other))


def _decided(streams: Mapping[str, Stream], truth: Truth) -> Iterator[Finding]:
    """An order is committed if and only if inventory's log says so, with the same total."""
    log = {outcome["order_id"]: outcome for outcome in truth.log.values() if outcome["type"] == "committed"}
    for order, outcome in log.items():
        committed = next((event for event in streams.get(order, {}).values() if event.type == "committed"), None)
        if committed is None:
            yield Finding("I7", f"inventory committed order {order}, its stream does not say so", (order,))
        elif committed.data.get("total") != outcome["total"]:
            told, kept = committed.data.get("total"), outcome["total"]
            yield Finding("I7", f"order {order} is committed at {told}, inventory says {kept}", _words(committed))
    for order, stream in streams.items():
        committed = next((event for event in stream.values() if event.type == "committed"), None)
        if committed is not None and order not in log:
            yield Finding("I7", f"order {order} is committed, inventory's log does not know it", _words(committed))


def _told(streams: Mapping[str, Stream], history: Sequence[Entry]) -> Iterator[Finding]:
    """What a shopper was told of an order stands in its stream."""
    seen: set[tuple[str, int, str]] = set()
    for entry, frame in frames(history):
        order, version, status = frame["order_id"], frame.get("order_version", 0), frame.get("status", "")
        if (order, version, status) in seen:
            continue
        seen.add((order, version, status))
        words = (order, *filter(None, (entry.id, entry.user)))
        if order not in streams:
            yield Finding("I7", f"{entry.user} was told of order {order}, which has no stream", words)
        elif version and version not in streams[order]:
            yield Finding("I7", f"order {order} was told at version {version}, which it never had", words)
        elif version and streams[order][version].status != status:
            stands = streams[order][version].status
            yield Finding("I7", f"order {order} was told {status} at version {version}, it was {stands}", words)


def _read(streams: Mapping[str, Stream], truth: Truth) -> Iterator[Finding]:
    """What a shopper reads of an order is what its events make of it."""
    for order, stream in streams.items():
        last = list(stream.values())[-1]
        read = truth.orders.get(order)
        if read is None:
            yield Finding("I7", f"order {order} is not among those that {last.user} reads", _words(last))
            continue
        reason = next((event.data.get("reason") for event in stream.values() if event.type == "cancelled"), None)
        stands = (last.status, last.version, reason)
        shown = (read["status"], read["order_version"], read.get("reason"))
        if shown != stands:
            yield Finding("I7", f"order {order} is read as {shown}, its events make it {stands}", _words(last))
    for order in truth.orders.keys() - streams.keys():
        yield Finding("I7", f"order {order} is read and has no stream", (order,))


def never_back(history: Sequence[Entry]) -> Iterator[Finding]:
    """What a shopper has not been told of an order before is newer than what they have.

    A frame may come again, equal. Version 2 comes from the cart and those after it from the orders, so it alone may be
    overtaken, by a cart that was dead meanwhile. The answer to a cancellation has an id of its own, tells how the order
    stood when it was accepted, and may come behind news of what happened since. Nobody asks this once a topic was fed
    back to itself by hand.
    """
    newest: dict[tuple[str, str, str], int] = defaultdict(int)
    told: set[tuple[str, str, int]] = set()
    for entry, frame in frames(_before_replays(history)):
        version, order, user = frame.get("order_version"), frame["order_id"], entry.user or ""
        if not entry.session or version is None or frame.get("replayed") or (user, order, version) in told:
            continue
        told.add((user, order, version))
        about = user, order, frame["id"]
        if COMMITTED < version < newest[about]:
            words = (order, user, *filter(None, (entry.id,)))
            yield Finding("I7", f"order {order} went back from {newest[about]} to {version} before {user}", words)
        newest[about] = max(newest[about], version)


def _before_replays(history: Sequence[Entry]) -> Iterator[Entry]:
    for entry in history:
        if entry.proc == NEMESIS and entry.f.startswith("replay"):
            return
        yield entry


def frames(history: Iterable[Entry]) -> Iterator[tuple[Entry, Mapping[str, Any]]]:
    """Whatever a client was told of an order: frames, and answers to requests that name one."""
    for entry in history:
        if entry.type in {"ok", "heard"} and entry.value.get("order_id"):
            yield entry, entry.value


def _words(event: OrderEvent) -> tuple[str, ...]:
    return event.order, event.user
