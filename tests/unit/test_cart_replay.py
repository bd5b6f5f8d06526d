"""A decision that the cart has applied before is published with the replay mark, for every kind of repetition."""

from datetime import timedelta
from typing import Any

import pytest

from cart_service import model
from cart_service.agents import CartAgents
from cart_service.store import CartStore
from contracts import cart, inventory
from contracts.envelope import Envelope
from contracts.ids import derive_id
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import ReceivedMessage
from tests.testkit.cart_fixtures import LINE, NOW, TOTAL, MemoryTable

END = NOW + timedelta(minutes=15)
ADD = cart.Add(user_id="ann", product="TEAPOT", quantity=2)
HELD = inventory.Held(product="TEAPOT", quantity=2, line_quantity=2, expires_at=END, version=4)
ORDER = derive_id("ann", "r1", "order")


def committed(purpose: inventory.Purpose, order_id: str = ORDER) -> inventory.Committed:
    return inventory.Committed(order_id=order_id, purpose=purpose, lines=(LINE,), total=TOTAL, version=3)


def refused(order_id: str | None = None) -> inventory.Refused:
    return inventory.Refused(product="TEAPOT", reason="out_of_stock", available=0, order_id=order_id)


class Worker:
    """The cart's worker with Ann's cart at revision 3, where `r1` may be pending."""

    def __init__(self, *, pending: bool) -> None:
        self.told: list[dict[str, Any]] = []
        carts, kept = CartStore(MemoryTable()), model.Cart(revision=3)
        carts.put("ann", model.Cart(), model.add_pending(kept, "r1", ADD, accepted=NOW) if pending else kept)
        self.agents = CartAgents(carts, self.publish, lambda: "g1", lambda: NOW)

    async def publish(self, _: Topic, events: Any) -> None:
        self.told += [event.data for event in events]

    async def hear(self, outcome: inventory.Outcome, *, revision: int = 4, request_id: str = "r1") -> bool:
        """True if a decision is published with the replay mark."""
        decided = inventory.Decided(user_id="ann", outcome=outcome, cart=inventory.Cart(revision=revision))
        data = decided.model_dump(mode="json")
        event = Envelope(
            id="e", source="/inventory", type=decided.TYPE, subject="ann", time=NOW, requestid=request_id, data=data
        )
        await self.agents.on_inventory_responses([ReceivedMessage(event, decided, 0, 0)])
        answers, self.told = self.told, []
        marks = {answer["replayed"] for answer in answers}
        assert len(marks) == 1
        return bool(marks.pop())


@pytest.mark.parametrize(
    ("outcome", "pending"),
    [
        (HELD, True),
        (HELD, False),  # e.g. its cart was lost
        (inventory.Removed(product="TEAPOT", version=3), True),
        (inventory.Removed(product="TEAPOT", version=4), True),
        (inventory.Expired(lines=(), version=4), False),
        (committed("order"), True),
    ],
)
async def test_a_decision_is_published_once_without_the_replay_mark(outcome: inventory.Outcome, pending: bool) -> None:
    worker = Worker(pending=pending)
    assert [await worker.hear(outcome) for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize(
    "outcome", [refused(), committed("reservation", "job"), refused("job"), inventory.Sold(order_id="job")]
)
async def test_an_unknown_decision_is_published_with_its_own_mark(outcome: inventory.Outcome) -> None:
    worker = Worker(pending=False)
    assert [await worker.hear(outcome, revision=3) for _ in range(2)] == [False, False]


async def test_a_cart_that_an_order_gave_back_is_shown_once_as_news() -> None:
    """Clients that get changes from elsewhere by push get this one when it is made, and not at a replay."""
    worker = Worker(pending=False)
    released, step = inventory.Released(order_id=ORDER, version=4), f"{ORDER}/release"
    assert [await worker.hear(released, request_id=step) for _ in range(3)] == [False, True, True]


async def test_a_line_that_an_old_removal_hid_is_shown_again_without_a_frame() -> None:
    """The record of the removal, fed back as it was when it was news, settles the request fed back before it."""
    worker = Worker(pending=False)
    carts = worker.agents.carts
    kept = model.Cart(revision=3, expires_at=END, lines=(LINE,))
    again = cart.Remove(user_id="ann", product="TEAPOT")
    carts.put("ann", carts.get("ann"), model.add_pending(kept, "r1", again, accepted=NOW))
    removed = inventory.Removed(product="TEAPOT", version=2)
    decided = inventory.Decided(user_id="ann", outcome=removed, cart=inventory.Cart(revision=2))
    data = decided.model_dump(mode="json")
    event = Envelope(id="e", source="/inventory", type=decided.TYPE, subject="ann", time=NOW, requestid="r1", data=data)
    await worker.agents.on_inventory_responses([ReceivedMessage(event, decided, 0, 0)])
    [_, whole] = worker.told
    assert ([line["product"] for line in whole["cart"]["lines"]], whole["replayed"]) == (["TEAPOT"], True)
