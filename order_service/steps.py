"""What an order must ask of others now, computed from its state alone; and when it is to be looked at again.

Each step has an id that is derived from the order and the step, and whoever is asked does a step once. So all that is
owed may be sent after every message, and again whenever the order's deadline comes: nothing need be remembered of what
was sent.
"""

from datetime import datetime
from typing import Final, NamedTuple

from infrastructure.envelope import Message
from infrastructure.topics import Topic
from inventory_service import messages as inventory
from order_service.delivery import messages as deliveries
from order_service.messages import Address, Contact, Payment, Place
from order_service.model import Rules, is_unpaid
from order_service.outcomes import FAILED_PARCEL
from order_service.payment import messages as payments
from order_service.state import Order, payment_id, shipment_id, step_id

BACK_TO_THE_CART: Final = frozenset({"declined", "payment_unavailable", "wrong_amount"})
"""Orders that failed at the payment: their shopper may want to try another, so the holds become the cart's again."""


class Private(NamedTuple):
    """What no event tells: where the parcel goes, how its shopper is reached, what stands for the money. Erasable."""

    address: Address
    contact: Contact
    payment: Payment

    @classmethod
    def of(cls, place: Place) -> "Private":
        """That of a place."""
        return cls(place.address, place.contact, place.payment)


class Step(NamedTuple):
    """One message to send, under a request id of its own. `at` is its time of acceptance, when that is not now."""

    topic: Topic
    request_id: str
    message: Message
    at: datetime | None = None


def owed(order: Order, private: Private | None, *, late: bool = False) -> tuple[Step, ...]:
    """The steps that are owed; `late`, when the deadline has passed, also those that are another's turn to take.

    Without `private`, which is erased only when an order is at rest, what needs it is not asked for.
    """
    return (*_refunds(order), *(_undoing(order) if order.cancelling else _onward(order, private, late=late)))


def _onward(order: Order, private: Private | None, *, late: bool) -> tuple[Step, ...]:
    ids = {"order_id": order.order_id, "user_id": order.user_id}
    match order.status:
        case "placed" if late:  # the cart has asked, and keeps asking; but it may have lost what it knew
            commit = inventory.Commit(
                order_id=order.order_id,
                user_id=order.user_id,
                version=order.cart_version if order.items is None else None,
                lines=order.items,
                expect=order.expect,
            )
            return (Step(inventory.REQUESTS, order.request_id, commit, at=order.placed_at),)
        case "committed" if private is not None and order.total is not None:
            payment = ids | {"payment_id": payment_id(order.order_id)}
            charge = payments.Charge(**payment, amount=order.total, token=private.payment.token)
            query = payments.Query(**payment)
            return tuple(
                Step(payments.REQUESTS, step_id(order.order_id, name), message)
                for name, message in (("charge", charge), ("query", query))[: 2 if late else 1]
            )
        case "paid":
            return (_sell(order),)
        case "confirmed" | "shipped" if private is not None and (late or not order.booked):
            book = deliveries.Book(
                **ids, shipment_id=shipment_id(order.order_id), address=private.address, lines=order.lines
            )
            return (Step(deliveries.REQUESTS, step_id(order.order_id, "book"), book),)
        case _:
            return ()


def _undoing(order: Order) -> tuple[Step, ...]:
    """The one effect whose turn it is; money that was captured goes back by `_refunds`."""
    order_id = order.order_id
    ids = {"order_id": order_id, "user_id": order.user_id}
    match order.to_undo:
        case "delivery":
            call_off = deliveries.CallOff(**ids, shipment_id=shipment_id(order_id))
            return (Step(deliveries.REQUESTS, step_id(order_id, "call-off"), call_off),)
        case "sale" if (
            not order.sold
        ):  # asked for, perhaps under way: only what is done for sure can be undone for sure
            return (_sell(order),)
        case "sale":
            restock = inventory.Restock(**ids, shipped=order.reason == FAILED_PARCEL)
            return (Step(inventory.REQUESTS, step_id(order_id, "restock"), restock),)
        case "payment" if order.captured is None:
            void = payments.Void(**ids, payment_id=payment_id(order_id))
            return (Step(payments.REQUESTS, step_id(order_id, "void"), void),)
        case "holds":
            release = inventory.ReleaseOrder(**ids, to="cart" if order.reason in BACK_TO_THE_CART else "shelf")
            return (Step(inventory.REQUESTS, step_id(order_id, "release"), release),)
        case _:
            return ()


def _sell(order: Order) -> Step:
    sell = inventory.Sell(order_id=order.order_id, user_id=order.user_id)
    return Step(inventory.REQUESTS, step_id(order.order_id, "sell"), sell)


def _refunds(order: Order) -> tuple[Step, ...]:
    return tuple(
        Step(
            payments.REQUESTS,
            refund.refund_id,
            payments.Refund(
                order_id=order.order_id,
                user_id=order.user_id,
                payment_id=payment_id(order.order_id),
                refund_id=refund.refund_id,
                amount=refund.amount,
            ),
        )
        for refund in order.open_refunds
    )


def deadline(order: Order, now: datetime, attempts: int, rules: Rules) -> datetime | None:
    """When to look at the order again if nothing comes; none when it is at rest. `attempts`: looks since an event."""
    if order.at_rest:
        return None
    pause = min(rules.ask_again * (1 << min(attempts, 16)), rules.longest_pause)
    if is_unpaid(order):
        return max(now, min(now + pause, order.since + rules.payment_patience))
    return now + pause
