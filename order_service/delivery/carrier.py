"""The port to a carrier, and a simulated carrier that implements it.

The simulated carrier is deterministic and has no memory: its results follow from the time of the booking. A parcel is
shipped `ship` after its booking and delivered `deliver` after that. If the name or the second line of its address is
`FAIL`, the delivery fails and the parcel returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from contracts.ids import derive_id
from order_service.delivery.model import Booking, Parcel, Scan

FAIL_MARKER: Final = "FAIL"
"""The name or second address line that makes the simulated delivery fail."""


class CarrierPort(Protocol):
    """The calls to a carrier. A call that raises or times out is retried, so every call must be idempotent.

    `now` is the time at which the row became due, by the clock of the database.
    """

    async def book(self, parcel: Parcel, now: datetime) -> Booking:
        """Book the collection of a parcel. The same parcel gives the same booking."""
        ...

    async def track(self, parcel: Parcel, now: datetime) -> Sequence[Scan]:
        """Return all scans so far, the oldest first. The last one has the time of the next call."""
        ...

    async def call_off(self, parcel: Parcel, now: datetime) -> bool:
        """Call off a parcel, booked or not. Return False if the parcel has left already."""
        ...


@dataclass(frozen=True, slots=True)
class SimulatedCarrier:
    """A simulated carrier that accepts every call at once."""

    ship: timedelta
    """The time from the booking to the collection."""
    deliver: timedelta
    """The time from the collection to the delivery."""
    name: str = "Holdfast Parcels"
    """The name of the carrier in events."""

    async def book(self, parcel: Parcel, now: datetime) -> Booking:
        """Accept the booking at once."""
        return Booking(self.name, f"HP{derive_id(parcel.shipment_id)[:8].upper()}", now)

    async def track(self, parcel: Parcel, now: datetime) -> Sequence[Scan]:
        """Return the scans that follow from the time of the booking."""
        started = parcel.booked_at or now
        shipped, arrives = started + self.ship, started + self.ship + self.deliver
        if now < shipped:
            return [Scan("booked", started, next_at=shipped)]
        seen = [Scan("shipped", shipped, next_at=arrives)]
        if now >= arrives:
            fails = parcel.address is not None and FAIL_MARKER in {parcel.address.name, parcel.address.line2}
            reason = "nobody was there to take it" if fails else None
            seen.append(Scan("failed" if fails else "delivered", arrives, next_at=None, reason=reason))
        return seen

    async def call_off(self, parcel: Parcel, now: datetime) -> bool:
        """Accept until the parcel is shipped."""
        return parcel.booked_at is None or now < parcel.booked_at + self.ship
