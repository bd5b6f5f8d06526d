"""The port to a carrier, and one that is simulated behind it.

The simulated one is deterministic and has no memory: what it says follows from when a parcel was booked. A parcel is
shipped `ship` seconds after its booking and delivered `deliver` seconds after that. One whose address says FAIL, as its
name or its second line, can't be delivered and comes back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from infrastructure.ids import derived
from order_service.delivery.model import Booking, Parcel, Scan

FAIL: Final = "FAIL"


class CarrierPort(Protocol):
    """What is asked of a carrier. Each may raise or take too long, and is then asked again: all are idempotent.

    `now` is the database's time, by which the row became due.
    """

    async def book(self, parcel: Parcel, now: datetime) -> Booking:
        """Have it fetched; the same parcel again is the same booking."""
        ...

    async def track(self, parcel: Parcel, now: datetime) -> Sequence[Scan]:
        """Where it was seen so far, the first first; the last says when to ask again."""
        ...

    async def call_off(self, parcel: Parcel, now: datetime) -> bool:
        """Do not fetch it, whether it was booked or not; false when it is gone already."""
        ...


@dataclass(frozen=True, slots=True)
class SimulatedCarrier:
    """A carrier that is always quick and never busy."""

    ship: timedelta
    deliver: timedelta
    name: str = "Holdfast Parcels"

    async def book(self, parcel: Parcel, now: datetime) -> Booking:
        """Take it on at once."""
        return Booking(self.name, f"HP{derived(parcel.shipment_id)[:8].upper()}", now)

    async def track(self, parcel: Parcel, now: datetime) -> Sequence[Scan]:
        """What follows from when it was booked."""
        begun = parcel.booked_at or now
        shipped, arrives = begun + self.ship, begun + self.ship + self.deliver
        if now < shipped:
            return [Scan("booked", begun, next_at=shipped)]
        seen = [Scan("shipped", shipped, next_at=arrives)]
        if now >= arrives:
            fails = parcel.address is not None and FAIL in {parcel.address.name, parcel.address.line2}
            reason = "nobody was there to take it" if fails else None
            seen.append(Scan("failed" if fails else "delivered", arrives, next_at=None, reason=reason))
        return seen

    async def call_off(self, parcel: Parcel, now: datetime) -> bool:
        """Possible until it is shipped."""
        return parcel.booked_at is None or now < parcel.booked_at + self.ship
