"""What the others' answers do to an order: inventory's, the provider's, the carrier's; and what follows by itself.

Each says what is true by now, not what has just happened: it may be old, come a second time or overtake another. What
the order knows already gives no event.
"""

from typing import Final

from infrastructure.ids import derived
from inventory_service import messages as inventory
from order_service import messages as orders
from order_service.delivery import messages as deliveries
from order_service.messages import CancelReason
from order_service.payment import messages as payments
from order_service.state import Order, Story, Stray, payment_id, shipment_id

FAILED_PARCEL: Final = "delivery_failed"

Outcome = (
    inventory.Committed
    | inventory.Refused
    | inventory.Sold
    | inventory.Released
    | inventory.Restocked
    | inventory.Reservation
    | inventory.IdReused
)
"""What inventory says of an order."""


# ---- what inventory, the provider and the carrier say ---------------------------------------------------------------


def decided(story: Story, order: Order, outcome: Outcome) -> None:
    """What inventory says of the order's holds."""
    match outcome:
        case inventory.Committed(purpose="order", lines=lines, total=total) if order.status == "placed":
            story.tell(orders.Committed, "committed", lines=lines, total=total)
            if total.amount == 0:  # nothing to charge
                story.tell(orders.Captured, "paid", payment_id=payment_id(order.order_id), amount=total)
        case inventory.Refused(reason=reason) if order.status == "placed":
            story.tell(orders.Cancelled, "cancelled", reason=reason)
        case inventory.IdReused() if order.status == "placed":  # the id was an add's before: nothing is ever held
            story.tell(orders.Cancelled, "cancelled", reason="failed")
        case inventory.Sold() | inventory.Reservation(state="COMMITTED") if order.selling and not (
            order.sold or "sale" in order.undone
        ):
            story.tell(orders.Confirmed, None if order.cancelling else "confirmed")
        case inventory.Reservation(state="CANCELLED") if order.reason is None and order.status == "paid":
            story.tell(orders.Cancelling, reason="failed")  # somebody gave them back by hand: there is nothing to sell
            story.tell(orders.Undone, step="sale")
        case inventory.Restocked() | inventory.Reservation(state="CANCELLED") if order.to_undo == "sale":
            story.tell(orders.Undone, step="sale")
        case inventory.Released() | inventory.Reservation(state="CANCELLED") if order.to_undo == "holds":
            story.tell(orders.Undone, step="holds")


def paid(story: Story, order: Order, event: payments.Event) -> None:
    """What the provider did, or did not."""
    if order.total is None or event.payment_id != payment_id(order.order_id):
        raise Stray(f"{event.TYPE} {event.payment_id} of the order {order.order_id}, which never asked for it")
    match event:
        case payments.Captured(amount=amount) if order.captured is None:
            if order.reason is None and amount != order.total:
                story.tell(orders.Cancelling, reason="wrong_amount")
            onward = story.state is not None and story.state.reason is None
            story.tell(orders.Captured, "paid" if onward else None, payment_id=event.payment_id, amount=amount)
        case payments.Declined() | payments.Voided() if order.captured is None and "payment" not in order.undone:
            if order.reason is None:
                reason: CancelReason = "declined" if isinstance(event, payments.Declined) else "payment_unavailable"
                story.tell(orders.Cancelling, reason=reason)
            story.tell(orders.Undone, step="payment")
        case payments.Refunded(refund_id=refund_id, amount=amount):
            refund = next((refund for refund in order.refunds if refund.refund_id == refund_id), None)
            if refund is None:
                raise Stray(f"the refund {refund_id} of the order {order.order_id}, which never asked for it")
            if refund.given is None:
                whole = amount.model_copy(update={"amount": order.refunded + amount.amount})
                story.tell(orders.Refunded, refund_id=refund_id, amount=amount, refunded=whole)


def delivered(story: Story, order: Order, event: deliveries.Event) -> None:
    """Where the parcel has come to."""
    if not order.booking or event.shipment_id != shipment_id(order.order_id):
        raise Stray(f"{event.TYPE} {event.shipment_id} of the order {order.order_id}, which never asked for it")
    if "delivery" in order.undone or order.status not in {"confirmed", "shipped"}:
        return
    match event:
        case deliveries.Booked(carrier=carrier, tracking=tracking) if not order.booked and order.reason is None:
            story.tell(orders.Booked, shipment_id=event.shipment_id, carrier=carrier, tracking=tracking)
        case deliveries.Shipped(carrier=carrier, tracking=tracking) if order.status == "confirmed":
            story.tell(orders.Shipped, "shipped", shipment_id=event.shipment_id, carrier=carrier, tracking=tracking)
        case deliveries.Delivered():
            story.tell(orders.Delivered, "delivered")
        case deliveries.Failed():  # also when it was being cancelled for another reason: it comes back all the same
            story.tell(orders.Cancelling, reason=FAILED_PARCEL)
            story.tell(orders.Undone, step="delivery")
        case deliveries.CalledOff() if order.status == "confirmed":
            if order.reason is None:
                story.tell(orders.Cancelling, reason="failed")
            story.tell(orders.Undone, step="delivery")


# ---- what follows by itself -----------------------------------------------------------------------------------------


def settle(story: Story) -> None:
    """Ask for the money back when it is its turn, and end an order that is wholly undone."""
    while (order := story.state) is not None and order.reason is not None:
        effect = order.to_undo
        if effect == "payment" and order.captured is not None:
            if order.left > 0:
                refund_id = derived(order.order_id, "compensation", str(len(order.refunds)))
                amount = order.captured.model_copy(update={"amount": order.left})
                story.tell(orders.RefundAsked, refund_id=refund_id, amount=amount)
            elif not order.open_refunds:
                story.tell(orders.Undone, step="payment")
            else:
                return
        elif effect is None and order.status != "cancelled":
            given = order.captured and order.captured.model_copy(update={"amount": order.refunded})
            story.tell(orders.Cancelled, "cancelled", reason=order.reason, refunded=given)
        else:
            return
