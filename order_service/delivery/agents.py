"""The Kafka shell of delivery: store requests, call the carrier, publish the moves of parcels.

As in payment, three independent stages each wait for one dependency: the agent for Postgres, one job queue for the
carrier, another one for Kafka. Each stage starts from rows that the stage before it has stored.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from psycopg import sql

from contracts.deliveries import EVENTS, Request
from contracts.envelope import Envelope
from contracts.topics import Topic
from contracts.trace_context import child_traceparent
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.job_queue import Done, JobResult, Reschedule, Row
from order_service.delivery.carrier import CarrierPort
from order_service.delivery.model import (
    FINAL_STATES,
    Move,
    Parcel,
    after_booking,
    after_call_off,
    after_scans,
    event_of,
    next_call,
)
from order_service.delivery.store import DeliveryStore, changed_columns, parcel_of

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


class DeliveryAgents:
    """The handlers of `deliveries.requests` and of the rows that store them.

    `on_stored` is called after each commit, to wake the job queues.
    """

    def __init__(self, store: DeliveryStore, carrier: CarrierPort, publish: Publish) -> None:
        self.store = store
        self.carrier = carrier
        self.publish = publish
        self.on_stored: Callable[[], None] = lambda: None

    async def on_delivery_requests(self, batch: Sequence[ReceivedMessage[Request]]) -> None:
        """Store a batch of requests. It is acknowledged then, independent of the carrier."""
        await self.store.store_requests([(received.message, received.event) for received in batch])
        failpoint("delivery.stored")
        self.on_stored()

    async def on_permanent_failure(self, received: ReceivedMessage[Request], error: Exception) -> None:
        """Do nothing: an invalid request has no reply, only its dead letter."""

    async def advance_parcel(self, row: Row, _: int) -> JobResult:
        """Call the carrier about one parcel, with the time at which its row became due (by the database's clock)."""
        before = parcel_of(row)
        after, next_at = await self._call_carrier(before, row["move_at"])
        failpoint("delivery.moved")
        if after.state in FINAL_STATES or next_at is None:
            return Done(changed_columns(before, after))
        return Reschedule(max(next_at - row["move_at"], timedelta(0)), changed_columns(before, after))

    async def _call_carrier(self, parcel: Parcel, now: datetime) -> tuple[Parcel, datetime | None]:
        """Return the parcel after the calls to the carrier, and the time of the next call."""
        call = next_call(parcel)
        if call is None:
            return parcel, None
        if call == "call-off":
            if await self.carrier.call_off(parcel, now):
                return after_call_off(parcel, now), None
        elif call == "book":
            parcel = after_booking(parcel, await self.carrier.book(parcel, now))
        scans = tuple(await self.carrier.track(parcel, now))
        return after_scans(parcel, scans), scans[-1].next_at if scans else None

    async def publish_moves(self, row: Row, _: int) -> JobResult:
        """Publish the unpublished moves of one parcel, the oldest first."""
        parcel = parcel_of(row)
        failpoint("delivery.answered")
        await self.publish(EVENTS, [_envelope(parcel, move, row) for move in parcel.moves[row["told"] :]])
        failpoint("delivery.told")
        # A repeated request may have reset the column `told` meanwhile: then all moves are published again.
        published = sql.SQL("CASE WHEN tell_at = {} THEN {} ELSE told END").format(row["tell_at"], len(parcel.moves))
        return Done({"told": published})


def _envelope(parcel: Parcel, move: Move, row: Row) -> Envelope:
    event = event_of(parcel, move)
    return Envelope.of(
        event,
        source="/deliveries",
        subject=parcel.order_id,
        event_id=f"{parcel.shipment_id}/{move.to}",
        request_id=row["requestid"],
        time=move.at,
        traceparent=child_traceparent(row["traceparent"]),
        exclude_none=False,
    )
