"""The next commands of an order to other services, and its next deadline, both computed from its state alone.

The request id of each command is derived from the order and the step, and the receiver executes a command once.
Therefore all open commands may be sent after every message and again at each deadline: no record of sent commands is
needed.
"""

from datetime import datetime
from typing import Final, NamedTuple

from contracts import deliveries, inventory, payments
from contracts.envelope import Message
from contracts.orders import Address, Contact, Payment, Place
from contracts.topics import Topic
from order_service.model import SagaTimeouts, is_unpaid
from order_service.outcomes import DELIVERY_FAILED
from order_service.state import Order, command_id, payment_id, shipment_id

PAYMENT_FAILURES: Final = frozenset({"declined", "payment_unavailable", "wrong_amount"})
"""Reasons of a failed payment. The shopper may try another one, so the holds return to the cart."""


class PersonalData(NamedTuple):
    """The personal data of an order. No event contains it, so it can be erased."""

    address: Address
    contact: Contact
    payment: Payment | None
    """`None` once the payment token has been erased: the outcome of the charge is known."""

    @classmethod
    def of(cls, place: Place) -> "PersonalData":
        """Return the personal data in a `Place` request."""
        return cls(place.address, place.contact, place.payment)


class SagaCommand(NamedTuple):
    """A message to send under its own request id. `at` is its time of acceptance, `None` for the current time."""

    topic: Topic
    request_id: str
    message: Message
    at: datetime | None = None


def next_commands(
    order: Order, personal_data: PersonalData | None, *, overdue: bool = False
) -> tuple[SagaCommand, ...]:
    """Return the open commands of an order.

    With `late`, after the deadline has passed, the result includes commands that repeat the work of other services, in
    case that work was lost. Commands that need `personal_data` are left out without it; it is erased only after the
    order is complete.
    """
    return (
        *_refund_commands(order),
        *(
            _compensation_commands(order)
            if order.is_cancelling
            else _forward_commands(order, personal_data, late=overdue)
        ),
    )


def needs_payment_token(order: Order) -> bool:
    """Return True until the outcome of the charge is known, or the order is cancelled: no charge is sent afterwards."""
    return order.captured is None and order.reason is None and order.status != "cancelled"


def needs_personal_data(order: Order) -> bool:
    """Return False once the order was refused before any stock was held for it: nothing is sent to its address."""
    return order.status != "cancelled" or order.total is not None


def _forward_commands(order: Order, personal_data: PersonalData | None, *, late: bool) -> tuple[SagaCommand, ...]:
    ids = {"order_id": order.order_id, "user_id": order.user_id}
    match order.status:
        case "placed" if late:  # the cart sends and retries this commit, but it may have lost its table
            commit = inventory.Commit(
                order_id=order.order_id,
                user_id=order.user_id,
                version=order.cart_version if order.items is None else None,
                lines=order.items,
                expect=order.expect,
            )
            return (SagaCommand(inventory.REQUESTS, order.request_id, commit, at=order.placed_at),)
        case "committed" if personal_data is not None and personal_data.payment and order.total is not None:
            payment = ids | {"payment_id": payment_id(order.order_id)}
            charge = payments.Charge(**payment, amount=order.total, token=personal_data.payment.token)
            query = payments.Query(**payment)
            return tuple(
                SagaCommand(payments.REQUESTS, command_id(order.order_id, name), message)
                for name, message in (("charge", charge), ("query", query))[: 2 if late else 1]
            )
        case "paid":
            return (_sell_command(order),)
        case "confirmed" | "shipped" if personal_data is not None and (late or not order.booked):
            book = deliveries.Book(
                **ids, shipment_id=shipment_id(order.order_id), address=personal_data.address, lines=order.lines
            )
            return (SagaCommand(deliveries.REQUESTS, command_id(order.order_id, "book"), book),)
        case _:
            return ()


def _compensation_commands(order: Order) -> tuple[SagaCommand, ...]:
    """Return the command that undoes the next step. Captured money is refunded by `_refund_commands`."""
    order_id = order.order_id
    ids = {"order_id": order_id, "user_id": order.user_id}
    match order.next_to_undo:
        case "delivery":
            call_off = deliveries.CallOff(**ids, shipment_id=shipment_id(order_id))
            return (SagaCommand(deliveries.REQUESTS, command_id(order_id, "call-off"), call_off),)
        case "sale" if not order.sold:  # perhaps requested: only a confirmed sale can be restocked, so confirm it first
            return (_sell_command(order),)
        case "sale":
            restock = inventory.Restock(**ids, shipped=order.reason == DELIVERY_FAILED)
            return (SagaCommand(inventory.REQUESTS, command_id(order_id, "restock"), restock),)
        case "payment" if order.captured is None:
            void = payments.Void(**ids, payment_id=payment_id(order_id))
            return (SagaCommand(payments.REQUESTS, command_id(order_id, "void"), void),)
        case "holds":
            release = inventory.ReleaseOrder(**ids, to="cart" if order.reason in PAYMENT_FAILURES else "shelf")
            return (SagaCommand(inventory.REQUESTS, command_id(order_id, "release"), release),)
        case _:
            return ()


def _sell_command(order: Order) -> SagaCommand:
    sell = inventory.Sell(order_id=order.order_id, user_id=order.user_id)
    return SagaCommand(inventory.REQUESTS, command_id(order.order_id, "sell"), sell)


def _refund_commands(order: Order) -> tuple[SagaCommand, ...]:
    return tuple(
        SagaCommand(
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


def next_deadline(order: Order, now: datetime, attempts: int, timeouts: SagaTimeouts) -> datetime | None:
    """Return the time of the next retry, `None` if the order is complete.

    `attempts` is the number of retries since the last event.
    """
    if order.is_complete:
        return None
    pause = min(timeouts.retry_pause * (1 << min(attempts, 16)), timeouts.max_retry_pause)
    if is_unpaid(order):
        return max(now, min(now + pause, order.changed_at + timeouts.payment_timeout))
    return now + pause
