"""The shell of the inventory: take a batch of requests, decide it in one transaction, say what came of it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from infrastructure import metrics
from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import Envelope
from infrastructure.guard import Received
from infrastructure.locks import Locks
from infrastructure.topics import Topic
from infrastructure.trace import child
from inventory_service.messages import (
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
from inventory_service.state import Answer, Command
from inventory_service.store import Decisions, Store

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]
Decision = Held | Refused | Removed | Expired | Committed | Sold | Released | Restocked | Reservation


class Crowd:
    """The seed's rule of when to lock: for more than `above`, or when fewer than `remaining` would be left.

    It goes by what this worker saw last, which may be old: the lock only thins the crowd.
    """

    def __init__(self, above: int, remaining: int) -> None:
        self.above = above
        self.remaining = remaining
        self.seen: dict[str, int] = {}

    def wanted(self, requests: Sequence[Request]) -> set[str]:
        """The products of `requests` that call for a lock."""
        return {
            asked.product
            for request in requests
            for asked in _taking(request)
            if asked.quantity > self.above or self.seen.get(asked.product, 0) - asked.quantity < self.remaining
        }


def _taking(request: Request) -> Sequence[Hold | Item]:
    """What of it wants units that are on the shelves."""
    if isinstance(request, Hold):
        return (request,)
    return request.lines or () if isinstance(request, Commit) else ()


class Inventory:
    """What is done with `inventory.requests`."""

    def __init__(self, store: Store, locks: Locks, publish: Publish, crowd: Crowd) -> None:
        self.store = store
        self.locks = locks
        self.publish = publish
        self.crowd = crowd

    async def handle(self, batch: Sequence[Received[Request]]) -> None:
        """Decide a batch in one transaction, then say so; raises what the store raises, and nothing is done then."""
        await self._decide([(_command(received.event, received.message), received.event) for received in batch])

    async def fail(self, received: Received[Request], error: Exception) -> None:  # noqa: ARG002 - the guard keeps it
        """Decide `refused: failed` for a change that can't be carried out.

        Reads and knocks are only asked again; so is what is to be done with an order's holds, until it can be done.
        """
        if isinstance(received.message, Hold | Remove | Clear | Commit) and received.event.requestid:
            meant = {"type": received.event.type, **received.message.model_dump(mode="json")}
            failed = Fail(user_id=received.message.user_id, command=meant)
            await self._decide([(_command(received.event, failed), received.event)])

    async def _decide(self, asked: Sequence[tuple[Command, Envelope]]) -> None:
        commands = [command for command, _ in asked]
        async with self.locks.hold(self.crowd.wanted([command.request for command in commands])):
            decisions = await self.store.transact(commands)
        self.crowd.seen |= decisions.available
        crashpoint("inventory.committed")
        await self.publish(RESPONSES, responses(decisions, {id(command): event for command, event in asked}))
        crashpoint("inventory.told")


def _command(event: Envelope, message: Request) -> Command:
    if event.requestid is None:
        raise ValueError("a request to the inventory needs a requestid")
    return Command(event.requestid, event.time, message)


def responses(decisions: Decisions, causes: dict[int, Envelope]) -> list[Envelope]:
    """The events of a batch's answers, each in the trace of the request that brought it about.

    A cart is written out once a revision, not once an answer. `causes` has the event of each command by `id()`.
    """
    carts: dict[int, Any] = {}
    events = []
    for answer in decisions.answers:
        _count(answer)
        cart = carts.get(id(answer.cart))
        if cart is None:
            cart = carts[id(answer.cart)] = answer.cart.model_dump(mode="json")
        events.append(_response(answer, cart, decisions, causes[id(answer.command)]))
    return events


def _response(answer: Answer, cart: Any, decisions: Decisions, cause: Envelope) -> Envelope:
    user, read = answer.command.request.user_id, _read(answer.command.request)
    final = isinstance(answer.outcome, Decision) and not read
    return Envelope.model_construct(
        id=f"{user}/{answer.id}/{'decided' if final else answer.outcome.type}",
        source="/inventory",
        type=Decided.TYPE,
        subject=user,
        time=decisions.now,
        traceparent=child(cause.traceparent),
        requestid=answer.id,
        data={
            "user_id": user,
            "outcome": answer.outcome.model_dump(mode="json"),
            "cart": cart,
            "replayed": answer.replayed,
            **read,
        },
    )


def _read(request: Request) -> dict[str, str]:
    """What an answer to a read carries back to who asked; nothing for what is done."""
    match request:
        case Hold() | Remove():  # most of them; to find that a message is of none of the classes below is slow
            return {}
        case Snapshot(session=session, epoch=epoch):
            return {"session": session, "epoch": epoch}
        case Check(session=session) | Lookup(session=session) | ReadReservation(session=session):
            return {"session": session}
        case _:
            return {}


def _count(answer: Answer) -> None:
    if answer.replayed:
        metrics.DUPLICATES.inc()
    else:
        reason = answer.outcome.reason if isinstance(answer.outcome, Refused) else ""
        metrics.OUTCOMES.labels(answer.outcome.type, reason).inc()
