"""Bugs that are planted into the saga, one at a time: a test that finds none of them proves nothing."""

import uuid
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from contracts import inventory, orders, payments
from contracts.inventory import Money
from order_service import commands, model, outcomes, state


def _refunds_forgotten(story: state.EventRecorder) -> None:
    with patch.object(state.Order, "refundable", 0), patch.object(state.Order, "open_refunds", ()):
        _SETTLE(story)


def _each_capture_is_news(story: state.EventRecorder, order: state.Order, event: payments.Event) -> None:
    if isinstance(event, payments.Captured) and order.captured is not None:
        story.record(orders.Captured, payment_id=event.payment_id, amount=event.amount)
    else:
        _PAID(story, order, event)


def _late_captures_are_not_heard(story: state.EventRecorder, order: state.Order, event: payments.Event) -> None:
    if isinstance(event, payments.Captured) and order.is_cancelling:
        if "payment" not in order.undone_steps:
            story.record(orders.Undone, step="payment")
    else:
        _PAID(story, order, event)


_SETTLE, _PAID = outcomes.finish, outcomes.record_payment_event


def _impatient_sale(order: state.Order) -> commands.SagaCommand:
    sell = inventory.Sell(order_id=order.order_id, user_id=order.user_id)
    release = inventory.ReleaseOrder(order_id=order.order_id, user_id=order.user_id, to="shelf")
    return commands.SagaCommand(inventory.REQUESTS, f"{order.order_id}/sell", sell if order.reason is None else release)


PLANTED_BUGS: dict[str, Callable[[], Any]] = {
    "two captures": lambda: patch.object(outcomes, "record_payment_event", _each_capture_is_news),
    "the refund is lost": lambda: patch.object(outcomes, "finish", _refunds_forgotten),
    "released although captured": lambda: patch.object(outcomes, "record_payment_event", _late_captures_are_not_heard),
    "an id is minted in a handler": lambda: patch.object(commands, "payment_id", lambda _: str(uuid.uuid4())),
    "undone in the wrong order": lambda: patch.object(
        state, "COMPENSATION_ORDER", tuple(reversed(state.COMPENSATION_ORDER))
    ),
    "the deadline is not heard": lambda: patch.object(model, "_handle_deadline", lambda *_: None),
    "what comes too early is dropped": lambda: patch.object(model, "is_early", lambda *_: False),
    "a sale in flight is not waited for": lambda: patch.object(commands, "_sell_command", _impatient_sale),
    "the amount is not compared": lambda: patch.object(Money, "__ne__", lambda *_: False),
    "nothing is undone": lambda: patch.object(state.Order, "_was_started", lambda *_: False),
}
