"""The agents of the notification service: store requests, derive requests from orders and carts, publish outcomes.

Everything that is worth a notice becomes a request on the service's own topic, like the requests of other services. So
every notice has one record that requested it, and that record is dead-lettered if the notice fails permanently.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from contracts import cart, inventory, orders, trace_context
from contracts.envelope import Envelope
from contracts.ids import derive_id
from contracts.notifications import (
    EVENTS,
    REQUESTS,
    SECRET_PARAMS,
    Event,
    Failed,
    Forget,
    Forgotten,
    Prefer,
    Preferred,
    Request,
    Send,
    Sent,
    Skipped,
)
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.messaging.dead_letters import Record, dead_letter_event
from infrastructure.process import clock
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.job_queue import Done, JobResult, Row
from notification_service.model import (
    Preferences,
    TrackedCart,
    apply_response,
    cart_change_notice,
    changed_lines,
    expiry_notice,
    is_paid,
    order_notice,
    summarize_order,
)
from notification_service.store import SERVICE, ReceivedRequest, Store
from notification_service.templates import render

SOURCE: Final = "/notifications"
"""Source of the service's own records; requests with another one come from other services."""
Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


class NotificationAgents:
    """Handlers of each topic, and of rows that are due. `topic_name` returns a topic's name at the broker."""

    def __init__(
        self,
        store: Store,
        publish: Publish,
        topic_name: Callable[[Topic], str],
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self.store = store
        self.publish = publish
        self.topic_name = topic_name
        self.now = now

    # ---- topics -----------------------------------------------------------------------------------------------------

    async def on_requests(self, batch: Sequence[ReceivedMessage[Request]]) -> None:
        """Store the requested notices and preferences, then publish the answers to preferences and erasures."""
        requests = [
            ReceivedRequest(
                r.message,
                r.event.time,
                r.partition,
                r.offset,
                r.event.encode().decode(),
                r.event.traceparent,
                by_service=r.event.source != SOURCE,
            )
            for r in batch
        ]
        preferences = await self.store.store_requests(requests, self.now())
        failpoint("notifications.stored")
        await self.publish(EVENTS, [event for received in batch if (event := _answer(received, preferences))])
        failpoint("notifications.answered")

    async def on_order_requests(self, batch: Sequence[ReceivedMessage[orders.Request]]) -> None:
        """Store the contacts of new orders."""
        orders_placed = [(r.message, r.event.time) for r in batch if isinstance(r.message, orders.Place)]
        await self.store.store_contacts(orders_placed)

    async def on_order_events(self, batch: Sequence[ReceivedMessage[orders.Event]]) -> None:
        """Request the notices that events of orders are worth."""
        committed = [(r.message, r.event.time) for r in batch if isinstance(r.message, orders.Committed)]
        if committed:
            names = await self.store.product_names({line.product for each, _ in committed for line in each.lines})
            await self.store.store_order_summaries(
                {each.order_id: (each.user_id, summarize_order(each, names), at) for each, at in committed}
            )
        if paid := {r.message.order_id: r.message.user_id for r in batch if is_paid(r.message)}:
            await self.store.store_paid_orders(paid)
        confirmed = {r.message.order_id for r in batch if isinstance(r.message, orders.Confirmed)}
        summaries = await self.store.order_summaries(confirmed) if confirmed else {}
        await self._publish_requests(
            [(order_notice(r.message, summaries.get(r.message.order_id)), r.event) for r in batch]
        )

    async def on_cart_responses(self, batch: Sequence[ReceivedMessage[cart.Response]]) -> None:
        """Track when carts expire, and request notices of changes that the shopper did not make."""
        by_user: dict[str, list[ReceivedMessage[cart.Response]]] = defaultdict(list)
        for received in batch:
            by_user[received.message.user_id].append(received)

        def change(user: str, before: TrackedCart) -> tuple[TrackedCart, datetime | None]:
            after, due = before, None
            for received in by_user[user]:
                changed = apply_response(after, received.message)
                if changed is not after:
                    after, due = changed, changed.warning_time(received.event.time)
            return after, due

        await self.store.update_carts(by_user, change)
        codes = {line.product for received in batch for line in changed_lines(received.message)}
        names = await self.store.product_names(codes) if codes else {}
        await self._publish_requests([(cart_change_notice(r.message, names), r.event) for r in batch])

    async def on_products(self, batch: Sequence[ReceivedMessage[inventory.Product]]) -> None:
        """Store the names of products, for lists of lines."""
        await self.store.store_product_names([received.message for received in batch])

    async def on_permanent_failure(self, received: ReceivedMessage[Any], error: Exception) -> None:
        """Ignore a record that fails permanently: the dead letter keeps it."""

    async def _publish_requests(self, sends: Sequence[tuple[Send | None, Envelope]]) -> None:
        requests = [_request(send, cause.time, cause.traceparent) for send, cause in sends if send]
        if requests:
            failpoint("notifications.noted")
            await self.publish(REQUESTS, requests)
            failpoint("notifications.asked")

    # ---- rows that are due ------------------------------------------------------------------------------------------

    async def request_expiry_warning(self, row: Row, attempt: int) -> JobResult:  # noqa: ARG002 - retried without limit
        """Request the expiry warning of a cart; a cart that has expired already gets none."""
        expires_at, now = row["expires_at"], self.now()
        if expires_at is not None and expires_at > now:
            send = expiry_notice(row["user_id"], expires_at)
            await self.publish(REQUESTS, [_request(send, now, None)])
            failpoint("notifications.warned")
        return Done()

    async def publish_outcome(self, row: Row, attempt: int) -> JobResult:  # noqa: ARG002 - retried without limit
        """Publish the outcome of a notice. The request of a notice that failed permanently is dead-lettered first."""
        if row["status"] == "failed" and row["request"] is not None:
            position = (self.topic_name(REQUESTS), row["partition"], row["record_offset"])
            dead_letter = dead_letter_event(
                Record(*position, row["user_id"].encode(), _redrivable_request(row)),
                reason="failed",
                detail=f"{row['channel']}: {row['reason']}",
                service=SERVICE,
                attempts=max(row["tries"], 1),
                now=row["settled_at"],
            )
            await self.publish(REQUESTS.dead_letter_topic, [dead_letter])
            failpoint("notifications.put_aside")
        if row["status"] in {"sent", "failed", "skipped"}:
            await self.publish(EVENTS, [_outcome(row)])
        failpoint("notifications.told")
        return Done()


def _request(send: Send, time: datetime, traceparent: str | None) -> Envelope:
    return _event(send, f"{send.user_id}/{derive_id(send.user_id, send.cause, 'send')}/send", time, traceparent)


def _redrivable_request(row: Row) -> bytes:
    """Return the request of a failed notice for its dead letter, with its own position in `redrives`.

    Only a redrive of the dead letter carries that position; a replay of the original record does not.
    """
    request = orjson.loads(row["request"])
    request["data"]["redrives"] = f"{row['partition']}/{row['record_offset']}"
    return orjson.dumps(request)


def _answer(received: ReceivedMessage[Request], preferences: Mapping[str, Preferences]) -> Envelope | None:
    """Build the event that answers a request; `None` for the request of a notice."""
    request, event = received.message, received.event
    answer: Event
    match request:
        case Send():
            return None
        case Forget():
            answer = Forgotten(user_id=request.user_id, at=event.time)
        case Prefer():
            current = preferences[request.user_id]
            answer = Preferred(
                user_id=request.user_id,
                email=current.email,
                sms=current.sms,
                push=current.push,
                since=current.since or event.time,
            )
    name = f"{request.user_id}/{event.request_id}/{answer.TYPE.rpartition('.')[2]}"
    return _event(answer, name, event.time, event.traceparent, event.requestid)


def _outcome(row: Row) -> Envelope:
    public = {name: value for name, value in row["params"].items() if name not in SECRET_PARAMS}
    text = render(row["template"], public)
    fields = {name: row[name] for name in ("user_id", "notice_id", "template", "channel", "cause", "accepted_at")}
    fields |= {"title": text.title, "body": text.body}
    outcome: Sent | Failed | Skipped
    match row["status"]:
        case "failed":
            outcome = Failed(**fields, reason=row["reason"])
        case "skipped":
            outcome = Skipped(**fields, reason=row["reason"])
        case _:
            outcome = Sent(**fields)
    name = f"{row['user_id']}/{row['notice_id']}/{row['status']}"
    return _event(outcome, name, row["settled_at"], row["traceparent"])


def _event(
    message: Request | Event, name: str, time: datetime, traceparent: str | None, requestid: str | None = None
) -> Envelope:
    return Envelope.of(
        message,
        source=SOURCE,
        subject=message.user_id,
        event_id=name,
        request_id=requestid,
        time=time,
        traceparent=trace_context.child_traceparent(traceparent),
    )
