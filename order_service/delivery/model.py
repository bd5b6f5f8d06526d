"""The rules of delivery: the effect of a request on a parcel, the next call to the carrier, the effect of its result.

A parcel only moves forward: wanted, booked, shipped, and then delivered or failed. It can be called off until it is
shipped; a parcel that is called off before its booking is never booked. Each move is published, in order, and again on
a repeated request.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from contracts.deliveries import Book, Booked, CalledOff, CallOff, Delivered, Event, Failed, Request, Shipped
from contracts.orders import Address

State = Literal["wanted", "booked", "shipped", "delivered", "failed", "called-off"]
Intent = Literal["book", "call-off"]

FINAL_STATES: Final = frozenset({"delivered", "failed", "called-off"})
"""The states that a parcel never leaves."""
_ORDER: Final[tuple[State, ...]] = ("wanted", "booked", "shipped", "delivered")

# ---- state ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Move:
    """A change of the state of a parcel."""

    to: State
    """The new state."""
    at: datetime
    """The time of the change, by the carrier or, if the service made it, by the database."""
    reason: str | None = None
    """The reason of a failed delivery."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """The parcel of an order."""

    shipment_id: str
    """The carrier's key for the parcel."""
    order_id: str
    """The order that the parcel belongs to."""
    user_id: str
    """The shopper who placed the order."""
    intent: Intent = "book"
    """The last request of the order service."""
    address: Address | None = None
    """The delivery address, `None` before `Book` arrives and after the parcel has reached a final state."""
    state: State = "wanted"
    """The state after the last move, `wanted` before the first one."""
    carrier: str | None = None
    """The name of the carrier, `None` before the booking."""
    tracking: str | None = None
    """The carrier's tracking number, `None` before the booking."""
    booked_at: datetime | None = None
    """The time of the booking."""
    moves: tuple[Move, ...] = ()
    """All moves, the oldest first."""


# ---- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParcelUpdate:
    """The result of a request."""

    parcel: Parcel
    """The parcel after the request."""
    must_call_carrier: bool
    """True if the carrier must be called now."""
    must_republish: bool
    """True if all moves must be published again."""


def apply_request(parcel: Parcel, request: Request) -> ParcelUpdate:
    """Apply a request to its parcel. A repeated request changes nothing, but the known moves are published again."""
    match request:
        case Book(address=address) if parcel.state == "wanted" and parcel.intent == "book" and parcel.address is None:
            return ParcelUpdate(replace(parcel, address=address), must_call_carrier=True, must_republish=False)
        case CallOff() if parcel.intent == "book" and parcel.state in {"wanted", "booked"}:
            return ParcelUpdate(replace(parcel, intent="call-off"), must_call_carrier=True, must_republish=False)
        case _:
            return ParcelUpdate(parcel, must_call_carrier=False, must_republish=bool(parcel.moves))


# ---- calls to the carrier, and their results ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Booking:
    """A booking: the name of the carrier, its tracking number, and the time of the booking."""

    carrier: str
    tracking: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Scan:
    """A state reported by the carrier. `next_at` is the time of the next call, `None` if no change will follow."""

    state: State
    at: datetime
    next_at: datetime | None
    reason: str | None = None


CarrierCall = Literal["book", "call-off", "track"]


def next_call(parcel: Parcel) -> CarrierCall | None:
    """Return the next call to the carrier about the parcel, `None` if nothing is open."""
    if parcel.state in FINAL_STATES:
        return None
    if parcel.intent == "call-off" and parcel.state in {"wanted", "booked"}:
        return "call-off"
    return "book" if parcel.state == "wanted" else "track"


def after_booking(parcel: Parcel, booking: Booking) -> Parcel:
    """Return the parcel after the carrier accepted the booking."""
    move = Move("booked", booking.at)
    return replace(
        parcel,
        state="booked",
        carrier=booking.carrier,
        tracking=booking.tracking,
        booked_at=booking.at,
        moves=(*parcel.moves, move),
    )


def after_call_off(parcel: Parcel, at: datetime) -> Parcel:
    """Return the parcel after the carrier called it off."""
    return replace(parcel, state="called-off", address=None, moves=(*parcel.moves, Move("called-off", at)))


def after_scans(parcel: Parcel, scans: tuple[Scan, ...]) -> Parcel:
    """Return the parcel after `scans`, the oldest first. Scans of the present or an earlier state are ignored."""
    for scan in scans:
        if parcel.state in FINAL_STATES or not _is_ahead(parcel.state, scan.state):
            continue
        moves = (*parcel.moves, Move(scan.state, scan.at, scan.reason))
        address = None if scan.state in FINAL_STATES else parcel.address
        parcel = replace(parcel, state=scan.state, address=address, moves=moves)
    return parcel


def _is_ahead(state: State, seen: State) -> bool:
    if seen == "failed":
        return state == "shipped"
    return seen in _ORDER and _ORDER.index(seen) == _ORDER.index(state) + 1


# ---- published events -----------------------------------------------------------------------------------------------


def event_of(parcel: Parcel, move: Move) -> Event:
    """Return the event that publishes a move."""
    ids = {"order_id": parcel.order_id, "user_id": parcel.user_id, "shipment_id": parcel.shipment_id}
    carrier_fields = {"carrier": parcel.carrier or "", "tracking": parcel.tracking or ""}
    match move.to:
        case "booked":
            return Booked(**ids, **carrier_fields)
        case "shipped":
            return Shipped(**ids, **carrier_fields)
        case "delivered":
            return Delivered(**ids)
        case "failed":
            return Failed(**ids, reason=move.reason or "it could not be delivered")
        case "called-off":
            return CalledOff(**ids)
        case "wanted":
            raise ValueError("state 'wanted' has no event")
