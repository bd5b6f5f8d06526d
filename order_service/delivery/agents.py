"""The shell of delivery: store what is wanted, ask the carrier, tell where the parcel has come to.

As in payment, three acts that wait for nothing but their own: the agent for Postgres, one pump for the carrier, the
other for Kafka. Each begins where the one before it has stored something.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from psycopg import sql

from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import Envelope
from infrastructure.guard import Received
from infrastructure.pump import Again, Done, Row, Verdict
from infrastructure.topics import Topic
from infrastructure.trace import child
from order_service.delivery.carrier import CarrierPort
from order_service.delivery.messages import EVENTS, Request
from order_service.delivery.model import FINAL, Move, Parcel, booked, called_off, event_of, next_question, scanned
from order_service.delivery.store import DeliveryStore, changes, parcel_of

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


class Deliveries:
    """What is done with `deliveries.requests`, and with the rows that they become.

    `stored` is called after each commit: whoever works on rows has something to look at.
    """

    def __init__(self, store: DeliveryStore, carrier: CarrierPort, publish: Publish) -> None:
        self.store = store
        self.carrier = carrier
        self.publish = publish
        self.stored: Callable[[], None] = lambda: None

    async def handle(self, batch: Sequence[Received[Request]]) -> None:
        """Store what a batch wants; it is acknowledged then, whatever the carrier does."""
        await self.store.accept([(received.message, received.event) for received in batch])
        crashpoint("delivery.stored")
        self.stored()

    async def fail(self, received: Received[Request], error: Exception) -> None:
        """Nothing can be told of a request that makes no sense: the dead letters have it."""

    async def move(self, row: Row, _: int) -> Verdict:
        """Ask the carrier about one parcel. The time is that at which the row became due, by the database's clock."""
        before = parcel_of(row)
        after, next_at = await self._asked(before, row["move_at"])
        crashpoint("delivery.moved")
        if after.state in FINAL or next_at is None:
            return Done(changes(before, after))
        return Again(max(next_at - row["move_at"], timedelta(0)), changes(before, after))

    async def _asked(self, parcel: Parcel, now: datetime) -> tuple[Parcel, datetime | None]:
        """The parcel as it is now, and when to ask again."""
        question = next_question(parcel)
        if question is None:
            return parcel, None
        if question == "call-off":
            if await self.carrier.call_off(parcel, now):
                return called_off(parcel, now), None
        elif question == "book":
            parcel = booked(parcel, await self.carrier.book(parcel, now))
        scans = tuple(await self.carrier.track(parcel, now))
        return scanned(parcel, scans), scans[-1].next_at if scans else None

    async def tell(self, row: Row, _: int) -> Verdict:
        """Tell orders of the moves of one parcel that were not told, in their order."""
        parcel = parcel_of(row)
        crashpoint("delivery.answered")
        await self.publish(EVENTS, [_envelope(parcel, move, row) for move in parcel.moves[row["told"] :]])
        crashpoint("delivery.told")
        # Somebody may have asked for all of it again meanwhile: then it begins again.
        told = sql.SQL("CASE WHEN tell_at = {} THEN {} ELSE told END").format(row["tell_at"], len(parcel.moves))
        return Done({"told": told})


def _envelope(parcel: Parcel, move: Move, row: Row) -> Envelope:
    event = event_of(parcel, move)
    return Envelope(
        id=f"{parcel.shipment_id}/{move.to}",
        source="/deliveries",
        type=event.TYPE,
        subject=parcel.order_id,
        time=move.at,
        traceparent=child(row["traceparent"]),
        requestid=row["requestid"],
        data=event.model_dump(mode="json"),
    )
