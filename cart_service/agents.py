"""The shell of the cart service: read, note, ask, tell. The rules stand in `model.py`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

from cart_service import messages as cart
from cart_service import model
from cart_service.store import Carts
from infrastructure import clock, trace
from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import Envelope, Message
from infrastructure.guard import Received
from infrastructure.topics import Topic
from inventory_service import messages as inventory
from order_service import messages as orders

log = logging.getLogger(__name__)

SOURCE: Final = "/cart"
ASK_AGAIN_EVERY: Final = 1.0
ASK_AGAIN_AT_MOST: Final = 100
"""Requests asked again in one round: after a long stall, the queue must not grow by its own reminders."""

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]


class CartAgents:
    """Both agents of one worker, and what they know since its partitions were assigned.

    `generation` names the assignment in force, and is another name once the table has been recovered in it. A read is
    answered from the table only once a snapshot asked for in this assignment has come in; until then each is passed on
    to inventory.
    """

    def __init__(
        self,
        carts: Carts,
        publish: Publish,
        generation: Callable[[], str],
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self.carts = carts
        self.publish = publish
        self.generation = generation
        self.now = now
        self.confirmed: set[str] = set()
        self.reminders = model.Reminders()
        self._known_generation = ""

    async def on_requests(self, batch: Sequence[Received[cart.Request]]) -> None:
        """Note each change as pending and pass it on to inventory, also when it is pending already."""
        self._see_generation()
        places: list[Envelope] = []
        asks: list[Envelope] = []
        answers: list[Envelope] = []
        for received in batch:
            event, request = received.event, received.message
            request_id = event.request_id
            match request:
                case cart.Add() | cart.Set() | cart.Remove() | cart.Clear() | cart.Checkout():
                    before = self.carts.get(request.user_id)
                    after = model.noted(before, request_id, request, accepted=event.time)
                    self.carts.put(request.user_id, before, after)
                    self.reminders.note(request.user_id, request_id, now=self.now())
                    asks.append(_ask(event, model.asked(request)))
                    if isinstance(request, cart.Checkout):
                        places.append(_place(event, request))
                case _ if not model.still_wanted(event.time, now=self.now()):
                    pass
                case cart.Check():
                    asks.append(_ask(event, inventory.Check(**request.model_dump())))
                case cart.Lookup():
                    asks.append(_ask(event, inventory.Lookup(**request.model_dump())))
                case cart.Read() if request.user_id in self.confirmed:
                    state = self.carts.get(request.user_id)
                    answers.append(_tell(event, model.snapshot(request.user_id, request_id, request.session, state)))
                case cart.Read():
                    epoch = self.generation()
                    asks.append(
                        _ask(event, inventory.Snapshot(user_id=request.user_id, session=request.session, epoch=epoch))
                    )
        crashpoint("cart.noted")
        await self.publish(orders.REQUESTS, places)
        crashpoint("cart.placed")
        await self.publish(inventory.REQUESTS, asks)
        await self.publish(cart.RESPONSES, answers)
        crashpoint("cart.asked")

    async def on_decisions(self, batch: Sequence[Received[inventory.Decided]]) -> None:
        """Take each cart that is newer than ours, and always tell the outcome."""
        self._see_generation()
        answers: list[Envelope] = []
        for received in batch:
            event, decided = received.event, received.message
            request_id = event.request_id
            before = self.carts.get(decided.user_id)
            if model.was_taken(before, request_id, decided):  # this record is a second one
                decided = decided.model_copy(update={"replayed": True})
            after = model.taken(before, request_id, decided)
            self.carts.put(decided.user_id, before, after)
            self.reminders.settle(decided.user_id, request_id)
            if isinstance(decided.outcome, inventory.SnapshotTaken) and decided.epoch == self.generation():
                self.confirmed.add(decided.user_id)
            answer = model.told(after, request_id, decided)
            if answer is not None:
                answers.append(_tell(event, answer))
            moved = model.moved(after, request_id, decided)
            if moved or model.reappeared(before, after, decided):  # what is only seen again is no news
                replayed = decided.replayed or not moved
                whole = model.snapshot(decided.user_id, None, None, after, replayed=replayed)
                answers.append(_tell(event, whole))
        crashpoint("cart.taken")
        await self.publish(cart.RESPONSES, answers)
        crashpoint("cart.told")

    async def keep_asking(self) -> None:
        """Ask again, once a second, as long as the worker lives."""
        while True:
            await asyncio.sleep(ASK_AGAIN_EVERY)
            await self.ask_again()

    async def ask_again(self) -> None:
        """Ask for what has been pending too long; it only sends."""
        self._see_generation()
        asks = []
        for user_id, request_id in self.reminders.due(now=self.now(), limit=ASK_AGAIN_AT_MOST):
            pending = next((each for each in self.carts.get(user_id).pending if each.id == request_id), None)
            if pending is None:
                self.reminders.settle(user_id, request_id)
                continue
            try:
                asked = model.asked_again(user_id, pending)
            except (ValueError, TypeError) as error:  # somebody else wrote it; the others are asked for all the same
                log.warning("what %s has pending as %s can't be asked for: %s", user_id, request_id, error)
                self.reminders.settle(user_id, request_id)
                continue
            asks.append(_event(asked, user_id, request_id, pending.since, None))
        await self.publish(inventory.REQUESTS, asks)

    async def fail_request(self, received: Received[cart.Request], _: Exception) -> None:
        """A change that can't be carried out for good is decided `refused: failed`; for a read nobody waits long."""
        request = received.message
        if isinstance(request, cart.Checkout):  # its order begins, so that the refusal can end it
            await self.publish(orders.REQUESTS, [_place(received.event, request)])
        if isinstance(request, cart.Change):
            asked = model.asked(request)
            command = {"type": asked.TYPE, **asked.model_dump(exclude={"user_id"})}
            failure = inventory.Fail(user_id=request.user_id, command=command)
            await self.publish(inventory.REQUESTS, [_ask(received.event, failure)])

    async def fail_decision(self, received: Received[inventory.Decided], _: Exception) -> None:
        """The fact stands in Postgres; the cart asks again, and the dead letter keeps the record."""

    def _see_generation(self) -> None:
        """After a rebalance, what was known of carts and of their pending requests is void.

        The clock may bring us here before the table is recovered: `generation` is another one when it is.
        """
        if (generation := self.generation()) != self._known_generation:
            self._known_generation = generation
            self.confirmed.clear()
            self.reminders.rebuild(self.carts.pending(), now=self.now())


def _ask(cause: Envelope, request: inventory.Request) -> Envelope:
    return _event(request, cause.subject, cause.request_id, cause.time, cause.traceparent)


def _place(cause: Envelope, checkout: cart.Checkout) -> Envelope:
    return _event(model.placed(checkout), checkout.order_id, cause.request_id, cause.time, cause.traceparent)


def _tell(cause: Envelope, response: cart.Response) -> Envelope:
    return _event(response, cause.subject, cause.request_id, cause.time, cause.traceparent)


def _event(message: Message, key: str, request_id: str, time: datetime, traceparent: str | None) -> Envelope:
    verb = message.TYPE.rpartition(".")[2]
    return Envelope.model_construct(  # of checked parts; checking them again was a tenth of a batch
        id=f"{key}/{request_id}/{verb}",
        source=SOURCE,
        type=message.TYPE,
        subject=key,
        time=time,
        requestid=request_id,
        traceparent=trace.child(traceparent),
        data=message.model_dump(mode="json", exclude_none=True),
    )
