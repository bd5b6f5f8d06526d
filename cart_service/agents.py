"""The agents of the cart service: read a batch, apply the rules of `model.py`, publish the results."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

from cart_service import model
from cart_service.store import CartStore
from contracts import cart, inventory, orders, trace_context
from contracts.envelope import Envelope, Message
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.process import clock
from infrastructure.process.failpoints import failpoint

log = logging.getLogger(__name__)

SOURCE: Final = "/cart"
RETRY_SECONDS: Final = 1.0
MAX_RETRIES_PER_ROUND: Final = 100
"""Limit of retries in one round, so that retries after a long stall do not flood the topic."""

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


class CartAgents:
    """Handlers of both topics, with the state that is valid for one assignment of partitions.

    `generation` returns the name of the current assignment; the name changes again once the table has been recovered. A
    read is answered from the table only after a snapshot that was requested in this assignment has arrived. Until then,
    each read is passed on to inventory.
    """

    def __init__(
        self,
        carts: CartStore,
        publish: Publish,
        generation: Callable[[], str],
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self.carts = carts
        self.publish = publish
        self.generation = generation
        self.now = now
        self.confirmed_users: set[str] = set()
        self.retries = model.RetrySchedule()
        self._known_generation = ""

    async def on_requests(self, batch: Sequence[ReceivedMessage[cart.Request]]) -> None:
        """Add each change to the pending requests and send it to inventory, even if it is already pending."""
        self._detect_reassignment()
        placements: list[Envelope] = []
        requests: list[Envelope] = []
        responses: list[Envelope] = []
        for received in batch:
            event, request = received.event, received.message
            request_id = event.request_id
            match request:
                case cart.Add() | cart.Set() | cart.Remove() | cart.Clear() | cart.Checkout():
                    before = self.carts.get(request.user_id)
                    after = model.add_pending(before, request_id, request, accepted=event.time)
                    self.carts.put(request.user_id, before, after)
                    self.retries.add(request.user_id, request_id, now=self.now())
                    requests.append(_event(event, model.to_inventory_request(request)))
                    if isinstance(request, cart.Checkout):
                        placements.append(_order_event(event, request))
                case _ if not model.is_fresh(event.time, now=self.now()):
                    pass
                case cart.Check():
                    requests.append(_event(event, inventory.Check(**request.model_dump())))
                case cart.Lookup():
                    requests.append(_event(event, inventory.Lookup(**request.model_dump())))
                case cart.Read() if request.user_id in self.confirmed_users:
                    state = self.carts.get(request.user_id)
                    responses.append(_event(event, model.snapshot(request.user_id, request_id, request.session, state)))
                case cart.Read():
                    epoch = self.generation()
                    requests.append(
                        _event(event, inventory.Snapshot(user_id=request.user_id, session=request.session, epoch=epoch))
                    )
        failpoint("cart.noted")
        await self.publish(orders.REQUESTS, placements)
        failpoint("cart.placed")
        await self.publish(inventory.REQUESTS, requests)
        await self.publish(cart.RESPONSES, responses)
        failpoint("cart.asked")

    async def on_inventory_responses(self, batch: Sequence[ReceivedMessage[inventory.Decided]]) -> None:
        """Apply each cart that is newer than the stored one, and always publish the outcome."""
        self._detect_reassignment()
        responses: list[Envelope] = []
        for received in batch:
            event, decided = received.event, received.message
            request_id = event.request_id
            before = self.carts.get(decided.user_id)
            if model.already_applied(before, request_id, decided):  # a redelivered record
                decided = decided.model_copy(update={"replayed": True})
            after = model.apply_decision(before, request_id, decided)
            self.carts.put(decided.user_id, before, after)
            self.retries.discard(decided.user_id, request_id)
            if isinstance(decided.outcome, inventory.SnapshotTaken) and decided.epoch == self.generation():
                self.confirmed_users.add(decided.user_id)
            response = model.to_response(after, request_id, decided)
            if response is not None:
                responses.append(_event(event, response))
            is_news = model.needs_snapshot(after, request_id, decided)
            if is_news or model.unhides_lines(before, after, decided):  # lines that only reappear are a replay
                replayed = decided.replayed or not is_news
                full_cart = model.snapshot(decided.user_id, None, None, after, replayed=replayed)
                responses.append(_event(event, full_cart))
        failpoint("cart.taken")
        await self.publish(cart.RESPONSES, responses)
        failpoint("cart.told")

    async def run_retries(self) -> None:
        """Retry once per second until cancelled."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            await self.retry_due()

    async def retry_due(self) -> None:
        """Resend the requests that have been pending too long. The carts are not changed."""
        self._detect_reassignment()
        requests = []
        for user_id, request_id in self.retries.take_due(now=self.now(), limit=MAX_RETRIES_PER_ROUND):
            pending = next((each for each in self.carts.get(user_id).pending if each.id == request_id), None)
            if pending is None:
                self.retries.discard(user_id, request_id)
                continue
            try:
                retry = _retry_event(user_id, pending)
                retry.encode()
            except (ValueError, TypeError, OverflowError) as error:  # of another version; retry the others anyway
                log.warning(
                    "cannot retry the request that user %s has pending under id %s: %s", user_id, request_id, error
                )
                self.retries.discard(user_id, request_id)
                continue
            requests.append(retry)
        await self.publish(inventory.REQUESTS, requests)

    async def on_permanent_failure(
        self, received: ReceivedMessage[cart.Request] | ReceivedMessage[inventory.Decided], _: Exception
    ) -> None:
        """Have a change that fails permanently decided as `refused: failed`.

        A read is dropped, because its client stops waiting soon. A failed decision needs nothing: the fact is stored in
        Postgres, the cart retries its request, and the dead letter keeps the record.
        """
        request = received.message
        if isinstance(request, cart.Checkout):  # start the order, so that the refusal can end it
            await self.publish(orders.REQUESTS, [_order_event(received.event, request)])
        if isinstance(request, cart.Change):
            intended = model.to_inventory_request(request)
            command = {"type": intended.TYPE, **intended.model_dump(exclude={"user_id"})}
            failure = inventory.Fail(user_id=request.user_id, command=command)
            await self.publish(inventory.REQUESTS, [_event(received.event, failure)])

    def _detect_reassignment(self) -> None:
        """Discard all knowledge of carts and pending requests if the assignment has changed.

        The timer may call this method before the table is recovered. The generation changes again after the recovery,
        so the retry schedule is then rebuilt from the whole table.
        """
        if (generation := self.generation()) != self._known_generation:
            self._known_generation = generation
            self.confirmed_users.clear()
            self.retries.rebuild(self.carts.pending_requests(), now=self.now())


def _event(cause: Envelope, message: Message, subject: str | None = None) -> Envelope:
    """Return the event that carries `message`, by default with the subject of its `cause`."""
    return Envelope.of(
        message,
        source=SOURCE,
        cause=cause,
        subject=subject or cause.subject,
        validate=False,  # its parts were validated; validating them again took a tenth of a batch's time
    )


def _retry_event(user_id: str, pending: cart.PendingRequest) -> Envelope:
    return Envelope.of(
        model.retry_request(user_id, pending),
        source=SOURCE,
        subject=user_id,
        request_id=pending.id,
        time=pending.since,
        traceparent=trace_context.child_traceparent(None),
        validate=False,
    )


def _order_event(cause: Envelope, checkout: cart.Checkout) -> Envelope:
    return _event(cause, model.to_order_request(checkout), checkout.order_id)
