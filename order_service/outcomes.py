"""The effect on an order of the reports by inventory, payment and delivery, and the events that follow by themselves.

A report states a fact, not news: it may be old, duplicated or out of order. A fact that the order already knows results
in no event.
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
"""A result that inventory reports about an order."""


# ---- reports by inventory, payment and delivery ----------------------------------------------------------------------


def decided(recorder: Story, order: Order, outcome: Outcome) -> None:
    """Record the result that inventory reports about the holds of an order."""
    match outcome:
        case inventory.Committed(purpose="order", lines=lines, total=total) if order.status == "placed":
            recorder.tell(orders.Committed, "committed", lines=lines, total=total)
            if total.amount == 0:  # nothing to charge
                recorder.tell(orders.Captured, "paid", payment_id=payment_id(order.order_id), amount=total)
        case inventory.Refused(reason=reason) if order.status == "placed":
            recorder.tell(orders.Cancelled, "cancelled", reason=reason)
        case inventory.IdReused() if order.status == "placed":
            # The request id was used for an add before, so nothing will ever be held.
            recorder.tell(orders.Cancelled, "cancelled", reason="failed")
        case inventory.Sold() | inventory.Reservation(state="COMMITTED") if order.selling and not (
            order.sold or "sale" in order.undone
        ):
            recorder.tell(orders.Confirmed, None if order.cancelling else "confirmed")
        case inventory.Reservation(state="CANCELLED") if order.reason is None and order.status == "paid":
            recorder.tell(orders.Cancelling, reason="failed")  # an operator released the holds: nothing is left to sell
            recorder.tell(orders.Undone, step="sale")
        case inventory.Restocked() | inventory.Reservation(state="CANCELLED") if order.to_undo == "sale":
            recorder.tell(orders.Undone, step="sale")
        case inventory.Released() | inventory.Reservation(state="CANCELLED") if order.to_undo == "holds":
            recorder.tell(orders.Undone, step="holds")


def paid(recorder: Story, order: Order, event: payments.Event) -> None:
    """Record the result that payment reports. Raise `Stray` if the order did not request it."""
    if order.total is None or event.payment_id != payment_id(order.order_id):
        raise Stray(f"{event.TYPE} {event.payment_id}: the order {order.order_id} never requested this payment")
    match event:
        case payments.Captured(amount=amount) if order.captured is None:
            if order.reason is None and amount != order.total:
                recorder.tell(orders.Cancelling, reason="wrong_amount")
            onward = recorder.state is not None and recorder.state.reason is None
            recorder.tell(orders.Captured, "paid" if onward else None, payment_id=event.payment_id, amount=amount)
        case payments.Declined() | payments.Voided() if order.captured is None and "payment" not in order.undone:
            if order.reason is None:
                reason: CancelReason = "declined" if isinstance(event, payments.Declined) else "payment_unavailable"
                recorder.tell(orders.Cancelling, reason=reason)
            recorder.tell(orders.Undone, step="payment")
        case payments.Refunded(refund_id=refund_id, amount=amount):
            refund = next((refund for refund in order.refunds if refund.refund_id == refund_id), None)
            if refund is None:
                raise Stray(f"{event.TYPE} {refund_id}: the order {order.order_id} never requested this refund")
            if refund.given is None:
                refunded_so_far = amount.model_copy(update={"amount": order.refunded + amount.amount})
                recorder.tell(orders.Refunded, refund_id=refund_id, amount=amount, refunded=refunded_so_far)


def delivered(recorder: Story, order: Order, event: deliveries.Event) -> None:
    """Record the state of the parcel. Raise `Stray` if the order did not request the shipment."""
    if not order.booking or event.shipment_id != shipment_id(order.order_id):
        raise Stray(f"{event.TYPE} {event.shipment_id}: the order {order.order_id} never requested this shipment")
    if "delivery" in order.undone or order.status not in {"confirmed", "shipped"}:
        return
    match event:
        case deliveries.Booked(carrier=carrier, tracking=tracking) if not order.booked and order.reason is None:
            recorder.tell(orders.Booked, shipment_id=event.shipment_id, carrier=carrier, tracking=tracking)
        case deliveries.Shipped(carrier=carrier, tracking=tracking) if order.status == "confirmed":
            recorder.tell(orders.Shipped, "shipped", shipment_id=event.shipment_id, carrier=carrier, tracking=tracking)
        case deliveries.Delivered():
            recorder.tell(orders.Delivered, "delivered")
        case deliveries.Failed():  # also during a cancellation for another reason: the parcel returns in any case
            recorder.tell(orders.Cancelling, reason=FAILED_PARCEL)
            recorder.tell(orders.Undone, step="delivery")
        case deliveries.CalledOff() if order.status == "confirmed":
            if order.reason is None:
                recorder.tell(orders.Cancelling, reason="failed")
            recorder.tell(orders.Undone, step="delivery")


# ---- events that follow by themselves --------------------------------------------------------------------------------


def settle(recorder: Story) -> None:
    """Request the refund when it is the next step to undo, and end an order whose steps are all undone."""
    while (order := recorder.state) is not None and order.reason is not None:
        effect = order.to_undo
        if effect == "payment" and order.captured is not None:
            if order.left > 0:
                refund_id = derived(order.order_id, "compensation", str(len(order.refunds)))
                amount = order.captured.model_copy(update={"amount": order.left})
                recorder.tell(orders.RefundAsked, refund_id=refund_id, amount=amount)
            elif not order.open_refunds:
                recorder.tell(orders.Undone, step="payment")
            else:
                return
        elif effect is None and order.status != "cancelled":
            given = order.captured and order.captured.model_copy(update={"amount": order.refunded})
            recorder.tell(orders.Cancelled, "cancelled", reason=order.reason, refunded=given)
        else:
            return
