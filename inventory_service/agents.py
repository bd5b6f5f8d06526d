"""The agents of the inventory service: decide a batch of requests in one transaction, then publish the replies."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any

from contracts.envelope import Envelope
from contracts.inventory import (
    RESPONSES,
    Check,
    Clear,
    Commit,
    Committed,
    Decided,
    Expired,
    Fail,
    Held,
    Hold,
    Item,
    Lookup,
    ReadReservation,
    Refused,
    Released,
    Remove,
    Removed,
    Request,
    Reservation,
    Restocked,
    Snapshot,
    Sold,
)
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.observability import metrics
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.contention_locks import ContentionLocks
from inventory_service.state import Command, Reply
from inventory_service.store import BatchResult, Store

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]
FinalOutcome = Held | Refused | Removed | Expired | Committed | Sold | Released | Restocked | Reservation


class LockPolicy:
    """Policy that decides which products of a batch need a contention lock.

    A product needs a lock if a request takes more than `lock_above` units, or would leave fewer than `lock_remaining`.
    The policy uses the stock that this worker saw last, which may be old: the lock only reduces contention and never
    decides.
    """

    def __init__(self, lock_above: int, lock_remaining: int) -> None:
        self.lock_above = lock_above
        self.lock_remaining = lock_remaining
        self.available_seen: dict[str, int] = {}

    def products_to_lock(self, requests: Sequence[Request]) -> set[str]:
        """Return the products of `requests` that need a lock."""
        return {
            item.product
            for request in requests
            for item in _demands(request)
            if item.quantity > self.lock_above
            or self.available_seen.get(item.product, 0) - item.quantity < self.lock_remaining
        }


def _demands(request: Request) -> Sequence[Hold | Item]:
    """Return the parts of a request that take units from stock."""
    if isinstance(request, Hold):
        return (request,)
    return request.lines or () if isinstance(request, Commit) else ()


class InventoryAgents:
    """Handler of `inventory.requests`."""

    def __init__(self, store: Store, locks: ContentionLocks, publish: Publish, lock_policy: LockPolicy) -> None:
        self.store = store
        self.locks = locks
        self.publish = publish
        self.lock_policy = lock_policy

    async def on_requests(self, batch: Sequence[ReceivedMessage[Request]]) -> None:
        """Decide a batch in one transaction and publish the replies. If the store raises, nothing was decided."""
        await self._decide([(_command(received.event, received.message), received.event) for received in batch])

    async def on_permanent_failure(self, received: ReceivedMessage[Request], error: Exception) -> None:  # noqa: ARG002 - the dead letter keeps it
        """Decide `refused: failed` for a change that fails permanently.

        Reads and expiry requests are retried by their senders. So are sell, release and restock, until they succeed.
        """
        if isinstance(received.message, Hold | Remove | Clear | Commit) and received.event.requestid:
            command = {"type": received.event.type, **received.message.model_dump(mode="json")}
            failed = Fail(user_id=received.message.user_id, command=command)
            await self._decide([(_command(received.event, failed), received.event)])

    async def _decide(self, batch: Sequence[tuple[Command, Envelope]]) -> None:
        commands = [command for command, _ in batch]
        contended = self.lock_policy.products_to_lock([command.request for command in commands])
        async with self.locks.hold(contended) if contended else nullcontext():
            result = await self.store.transact(commands)
        self.lock_policy.available_seen |= result.available
        failpoint("inventory.committed")
        await self.publish(RESPONSES, reply_events(result, {id(command): event for command, event in batch}))
        failpoint("inventory.told")


def _command(event: Envelope, message: Request) -> Command:
    if event.requestid is None:
        raise ValueError("the event has no requestid, which every request to the inventory service needs")
    return Command(event.requestid, event.time, message)


def reply_events(result: BatchResult, causes: dict[int, Envelope]) -> list[Envelope]:
    """Build the events of a batch's replies, each in the trace of the request that led to it.

    A cart is serialised once per revision, not once per reply. `causes` maps `id(command)` to the event of the command.
    """
    _count(result.replies)
    carts: dict[int, Any] = {}
    events = []
    for reply in result.replies:
        cart = carts.get(id(reply.cart))
        if cart is None:
            cart = carts[id(reply.cart)] = reply.cart.model_dump(mode="json")
        events.append(_response(reply, cart, result, causes[id(reply.command)]))
    return events


def _response(reply: Reply, cart: Any, result: BatchResult, cause: Envelope) -> Envelope:
    user, read = reply.command.request.user_id, _read_fields(reply.command.request)
    final = isinstance(reply.outcome, FinalOutcome) and not read
    return Envelope.of(
        Decided,
        source="/inventory",
        cause=cause,
        subject=user,
        event_id=f"{user}/{reply.id}/{'decided' if final else reply.outcome.type}",
        request_id=reply.id,
        time=result.now,
        data={
            "user_id": user,
            "outcome": reply.outcome.model_dump(mode="json"),
            "cart": cart,
            "replayed": reply.replayed,
            **read,
        },
        validate=False,
    )


def _read_fields(request: Request) -> dict[str, str]:
    """Return the fields that the answer to a read returns to its sender; empty for any other request."""
    match request:
        case Hold() | Remove():  # the most frequent first: a failed class pattern is slow
            return {}
        case Snapshot(session=session, epoch=epoch):
            return {"session": session, "epoch": epoch}
        case Check(session=session) | Lookup(session=session) | ReadReservation(session=session):
            return {"session": session}
        case _:
            return {}


def _count(replies: Sequence[Reply]) -> None:
    metrics.DUPLICATES.inc(sum(reply.replayed for reply in replies))
    decided = [reply.outcome for reply in replies if not reply.replayed]
    reasons = [outcome.reason if isinstance(outcome, Refused) else "" for outcome in decided]
    for (type_, reason), number in Counter(zip((outcome.type for outcome in decided), reasons, strict=True)).items():
        metrics.OUTCOMES.labels(type_, reason).inc(number)
