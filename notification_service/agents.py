"""The shell of the notification service: hear what happens, ask for notices, store them, tell what became of them.

Whatever is worth telling becomes a request on the service's own topic, as others send them: so every notice has one
record that asked for it, which lies in the dead letters should it fail for good.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from cart_service import messages as cart
from infrastructure import clock, trace
from infrastructure.crashpoints import crashpoint
from infrastructure.dead_letters import Record, dead_letter
from infrastructure.envelope import Envelope
from infrastructure.guard import Received
from infrastructure.ids import derived
from infrastructure.pump import Done, Row, Verdict
from infrastructure.topics import Topic
from notification_service.messages import (
    EVENTS,
    REQUESTS,
    Event,
    Failed,
    Forget,
    Forgotten,
    Prefer,
    Preferred,
    Request,
    Send,
    Sent,
)
from notification_service.model import Preferences, Watched, bought, followed, of_cart, of_expiry, of_order
from notification_service.store import SERVICE, Asked, Store
from notification_service.words import words
from order_service import messages as orders

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


class Notices:
    """What is done with each topic, and with the rows that are due. `topic_name` is a topic's name at the broker."""

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

    # ---- what is heard ----------------------------------------------------------------------------------------------

    async def on_requests(self, batch: Sequence[Received[Request]]) -> None:
        """Store what is to be told, to whom and how; then say what is preferred and who is forgotten."""
        asked = [
            Asked(r.message, r.event.time, r.partition, r.offset, r.event.encode().decode(), r.event.traceparent)
            for r in batch
        ]
        preferences = await self.store.keep(asked, self.now())
        crashpoint("notifications.stored")
        await self.publish(EVENTS, [each for received in batch if (each := _answer(received, preferences))])
        crashpoint("notifications.answered")

    async def on_places(self, batch: Sequence[Received[orders.Request]]) -> None:
        """Remember how shoppers are reached."""
        places = [(r.message, r.event.time) for r in batch if isinstance(r.message, orders.Place)]
        await self.store.keep_contacts(places)

    async def on_orders(self, batch: Sequence[Received[orders.Event]]) -> None:
        """Ask for the notices that the events of orders are worth."""
        committed = [(r.message, r.event.time) for r in batch if isinstance(r.message, orders.Committed)]
        if committed:
            await self.store.keep_bought({each.order_id: (each.user_id, bought(each), at) for each, at in committed})
        confirmed = {r.message.order_id for r in batch if isinstance(r.message, orders.Confirmed)}
        known = await self.store.bought(confirmed) if confirmed else {}
        await self._ask([(of_order(r.message, known.get(r.message.order_id)), r.event) for r in batch])

    async def on_carts(self, batch: Sequence[Received[cart.Response]]) -> None:
        """Follow carts to their ends, and ask for the notices of changes that came from elsewhere."""
        told: dict[str, list[Received[cart.Response]]] = defaultdict(list)
        for received in batch:
            told[received.message.user_id].append(received)

        def change(user: str, before: Watched) -> tuple[Watched, datetime | None]:
            after, due = before, None
            for received in told[user]:
                changed = followed(after, received.message)
                if changed is not after:
                    after, due = changed, changed.warn_at(received.event.time)
            return after, due

        await self.store.follow(told, change)
        await self._ask([(of_cart(r.message), r.event) for r in batch])

    async def put_aside(self, received: Received[Any], error: Exception) -> None:
        """Nothing is told of a record that can't be acted on: the dead letter keeps it."""

    async def _ask(self, found: Sequence[tuple[Send | None, Envelope]]) -> None:
        asked = [_request(send, cause.time, cause.traceparent) for send, cause in found if send]
        if asked:
            crashpoint("notifications.noted")
            await self.publish(REQUESTS, asked)
            crashpoint("notifications.asked")

    # ---- what is due ------------------------------------------------------------------------------------------------

    async def warn(self, row: Row, attempt: int) -> Verdict:  # noqa: ARG002 - it is tried until it is sent
        """Ask for the warning of a cart that nears its end; one that has come to it hears of that itself."""
        expires_at, now = row["expires_at"], self.now()
        if expires_at is not None and expires_at > now:
            send = of_expiry(row["user_id"], expires_at)
            await self.publish(REQUESTS, [_request(send, now, None)])
            crashpoint("notifications.warned")
        return Done()

    async def tell(self, row: Row, attempt: int) -> Verdict:  # noqa: ARG002 - it is tried until it is told
        """Make known what became of a notice; the request of one that failed for good goes to the dead letters."""
        if row["status"] == "failed" and row["request"] is not None:
            place = (self.topic_name(REQUESTS), row["partition"], row["record_offset"])
            letter = dead_letter(
                Record(*place, row["user_id"].encode(), _redriving(row)),
                reason="failed",
                detail=f"{row['channel']}: {row['reason']}",
                service=SERVICE,
                attempts=max(row["tries"], 1),
                now=row["settled_at"],
            )
            await self.publish(REQUESTS.dead_letters, [letter])
            crashpoint("notifications.put_aside")
        if row["status"] in {"sent", "failed"}:
            await self.publish(EVENTS, [_outcome(row)])
        crashpoint("notifications.told")
        return Done()


def _request(send: Send, time: datetime, traceparent: str | None) -> Envelope:
    return _event(send, f"{send.user_id}/{derived(send.user_id, send.cause, 'send')}/send", time, traceparent)


def _redriving(row: Row) -> bytes:
    """The request of a notice that failed, for its letter: it names its own place, which no replay of it does."""
    request = orjson.loads(row["request"])
    request["data"]["redrives"] = f"{row['partition']}/{row['record_offset']}"
    return orjson.dumps(request)


def _answer(received: Received[Request], preferences: Mapping[str, Preferences]) -> Envelope | None:
    """What is made known of a request that is no notice."""
    request, event = received.message, received.event
    answer: Event
    match request:
        case Send():
            return None
        case Forget():
            answer = Forgotten(user_id=request.user_id, at=event.time)
        case Prefer():
            stands = preferences[request.user_id]
            answer = Preferred(
                user_id=request.user_id,
                email=stands.email,
                sms=stands.sms,
                push=stands.push,
                since=stands.since or event.time,
            )
    name = f"{request.user_id}/{event.request_id}/{answer.TYPE.rpartition('.')[2]}"
    return _event(answer, name, event.time, event.traceparent, event.requestid)


def _outcome(row: Row) -> Envelope:
    said = words(row["template"], row["params"])
    fields = {name: row[name] for name in ("user_id", "notice_id", "template", "channel", "cause", "accepted_at")}
    fields |= {"title": said.title, "body": said.body}
    outcome = Failed(**fields, reason=row["reason"]) if row["status"] == "failed" else Sent(**fields)
    name = f"{row['user_id']}/{row['notice_id']}/{row['status']}"
    return _event(outcome, name, row["settled_at"], row["traceparent"])


def _event(
    message: Request | Event, name: str, time: datetime, traceparent: str | None, requestid: str | None = None
) -> Envelope:
    return Envelope(
        id=name,
        source="/notifications",
        type=message.TYPE,
        subject=message.user_id,
        time=time,
        requestid=requestid,
        traceparent=trace.child(traceparent),
        data=message.model_dump(mode="json", exclude_none=True),
    )
