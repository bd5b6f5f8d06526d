"""The rules of delivery: what a request makes of a parcel, what the carrier is to be asked, and what its answer means.

A parcel only moves forward: wanted, booked, shipped, and then delivered or failed. Until it is shipped it may be called
off; one that was called off before it was ever booked never is. Each move is told, in order, and again when asked.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from order_service.delivery.messages import (
    Book,
    Booked,
    CalledOff,
    CallOff,
    Delivered,
    Event,
    Failed,
    Request,
    Shipped,
)
from order_service.messages import Address

State = Literal["wanted", "booked", "shipped", "delivered", "failed", "called-off"]
Wish = Literal["book", "call-off"]

FINAL: Final = frozenset({"delivered", "failed", "called-off"})
_ORDER: Final[tuple[State, ...]] = ("wanted", "booked", "shipped", "delivered")

# ---- state ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Move:
    """A parcel has come to a state."""

    to: State
    at: datetime
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is to be delivered for an order. `address` is there until nobody needs it."""

    shipment_id: str
    order_id: str
    user_id: str
    wish: Wish = "book"
    address: Address | None = None
    state: State = "wanted"
    carrier: str | None = None
    tracking: str | None = None
    booked_at: datetime | None = None
    moves: tuple[Move, ...] = ()


# ---- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """A parcel after a request; whether to ask the carrier now, and whether to tell its moves again."""

    parcel: Parcel
    move: bool
    tell: bool


def accept(parcel: Parcel, request: Request) -> Accepted:
    """What `request` makes of its parcel. A repetition changes nothing, and what is known is told again."""
    match request:
        case Book(address=address) if parcel.state == "wanted" and parcel.wish == "book" and parcel.address is None:
            return Accepted(replace(parcel, address=address), move=True, tell=False)
        case CallOff() if parcel.wish == "book" and parcel.state in {"wanted", "booked"}:
            return Accepted(replace(parcel, wish="call-off"), move=True, tell=False)
        case _:
            return Accepted(parcel, move=False, tell=bool(parcel.moves))


# ---- what to ask the carrier, and what it says ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Booking:
    """A carrier will fetch it: the carrier's name, its number for the parcel, and when it was booked."""

    carrier: str
    tracking: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Scan:
    """Where the carrier has seen it last, and when to ask again; none when nothing will come any more."""

    state: State
    at: datetime
    next_at: datetime | None
    reason: str | None = None


Question = Literal["book", "call-off", "track"]


def next_question(parcel: Parcel) -> Question | None:
    """What the carrier is to be asked about the parcel now; none when nothing is open."""
    if parcel.state in FINAL:
        return None
    if parcel.wish == "call-off" and parcel.state in {"wanted", "booked"}:
        return "call-off"
    return "book" if parcel.state == "wanted" else "track"


def booked(parcel: Parcel, booking: Booking) -> Parcel:
    """The parcel after the carrier has taken it on."""
    move = Move("booked", booking.at)
    return replace(
        parcel,
        state="booked",
        carrier=booking.carrier,
        tracking=booking.tracking,
        booked_at=booking.at,
        moves=(*parcel.moves, move),
    )


def called_off(parcel: Parcel, at: datetime) -> Parcel:
    """The parcel after the carrier has let it go."""
    return replace(parcel, state="called-off", address=None, moves=(*parcel.moves, Move("called-off", at)))


def scanned(parcel: Parcel, scans: tuple[Scan, ...]) -> Parcel:
    """The parcel after the carrier has said where it was seen, in order; what is known, or behind it, is left out."""
    for scan in scans:
        if parcel.state in FINAL or not _is_ahead(parcel.state, scan.state):
            continue
        moves = (*parcel.moves, Move(scan.state, scan.at, scan.reason))
        address = None if scan.state in FINAL else parcel.address
        parcel = replace(parcel, state=scan.state, address=address, moves=moves)
    return parcel


def _is_ahead(state: State, seen: State) -> bool:
    if seen == "failed":
        return state == "shipped"
    return seen in _ORDER and _ORDER.index(seen) == _ORDER.index(state) + 1


# ---- what is told ---------------------------------------------------------------------------------------------------


def event_of(parcel: Parcel, move: Move) -> Event:
    """The event that tells of a move."""
    names = {"order_id": parcel.order_id, "user_id": parcel.user_id, "shipment_id": parcel.shipment_id}
    by = {"carrier": parcel.carrier or "", "tracking": parcel.tracking or ""}
    match move.to:
        case "booked":
            return Booked(**names, **by)
        case "shipped":
            return Shipped(**names, **by)
        case "delivered":
            return Delivered(**names)
        case "failed":
            return Failed(**names, reason=move.reason or "it could not be delivered")
        case "called-off":
            return CalledOff(**names)
        case "wanted":
            raise ValueError("that a parcel is wanted is told by nobody")
