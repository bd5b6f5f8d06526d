"""The effect on an order of the reports by inventory, payment and delivery, and the events that follow by themselves.

A report states a fact, not news: it may be old, duplicated or out of order. A fact that the order already knows results
in no event.
"""

from typing import Final

from contracts import deliveries, inventory, orders, payments
from contracts.ids import derive_id
from contracts.orders import CancelReason
from order_service.state import EventRecorder, Order, UnexpectedMessage, payment_id, shipment_id

DELIVERY_FAILED: Final = "delivery_failed"

InventoryOutcome = (
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


def record_inventory_outcome(recorder: EventRecorder, order: Order, outcome: InventoryOutcome) -> None:
    """Record the result that inventory reports about the holds of an order."""
    match outcome:
        case inventory.Committed(purpose="order", lines=lines, total=total) if order.status == "placed":
            recorder.record(orders.Committed, "committed", lines=lines, total=total)
            if total.amount == 0:  # nothing to charge
                recorder.record(orders.Captured, "paid", payment_id=payment_id(order.order_id), amount=total)
        case inventory.Refused(reason=reason) if order.status == "placed":
            recorder.record(orders.Cancelled, "cancelled", reason=reason)
        case inventory.IdReused() if order.status == "placed":
            # The request id was used for an add before, so nothing will ever be held.
            recorder.record(orders.Cancelled, "cancelled", reason="failed")
        case inventory.Sold() | inventory.Reservation(state="COMMITTED") if order.sale_requested and not (
            order.sold or "sale" in order.undone_steps
        ):
            recorder.record(orders.Confirmed, None if order.is_cancelling else "confirmed")
        case inventory.Reservation(state="CANCELLED") if order.reason is None and order.status == "paid":
            recorder.record(
                orders.Cancelling, reason="failed"
            )  # an operator released the holds: nothing is left to sell
            recorder.record(orders.Undone, step="sale")
        case inventory.Restocked() | inventory.Reservation(state="CANCELLED") if order.next_to_undo == "sale":
            recorder.record(orders.Undone, step="sale")
        case inventory.Released() | inventory.Reservation(state="CANCELLED") if order.next_to_undo == "holds":
            recorder.record(orders.Undone, step="holds")


def record_payment_event(recorder: EventRecorder, order: Order, event: payments.Event) -> None:
    """Record the result that payment reports. Raise `UnexpectedMessage` if the order did not request it."""
    if order.total is None or event.payment_id != payment_id(order.order_id):
        raise UnexpectedMessage(
            f"{event.TYPE} {event.payment_id}: the order {order.order_id} never requested this payment"
        )
    match event:
        case payments.Captured(amount=amount) if order.captured is None:
            if order.reason is None and amount != order.total:
                recorder.record(orders.Cancelling, reason="wrong_amount")
            onward = recorder.state is not None and recorder.state.reason is None
            recorder.record(orders.Captured, "paid" if onward else None, payment_id=event.payment_id, amount=amount)
        case payments.Declined() | payments.Voided() if order.captured is None and "payment" not in order.undone_steps:
            if order.reason is None:
                reason: CancelReason = "declined" if isinstance(event, payments.Declined) else "payment_unavailable"
                recorder.record(orders.Cancelling, reason=reason)
            recorder.record(orders.Undone, step="payment")
        case payments.Refunded(refund_id=refund_id, amount=amount):
            refund = next((refund for refund in order.refunds if refund.refund_id == refund_id), None)
            if refund is None:
                raise UnexpectedMessage(
                    f"{event.TYPE} {refund_id}: the order {order.order_id} never requested this refund"
                )
            if refund.confirmed_amount is None:
                refunded_so_far = amount.model_copy(update={"amount": order.refunded + amount.amount})
                recorder.record(orders.Refunded, refund_id=refund_id, amount=amount, refunded=refunded_so_far)


def record_delivery_event(recorder: EventRecorder, order: Order, event: deliveries.Event) -> None:
    """Record the state of the parcel. Raise `UnexpectedMessage` if the order did not request the shipment."""
    if not order.booking_requested or event.shipment_id != shipment_id(order.order_id):
        raise UnexpectedMessage(
            f"{event.TYPE} {event.shipment_id}: the order {order.order_id} never requested this shipment"
        )
    if "delivery" in order.undone_steps or order.status not in {"confirmed", "shipped"}:
        return
    match event:
        case deliveries.Booked(carrier=carrier, tracking=tracking) if not order.booked and order.reason is None:
            recorder.record(orders.Booked, shipment_id=event.shipment_id, carrier=carrier, tracking=tracking)
        case deliveries.Shipped(carrier=carrier, tracking=tracking) if order.status == "confirmed":
            recorder.record(
                orders.Shipped, "shipped", shipment_id=event.shipment_id, carrier=carrier, tracking=tracking
            )
        case deliveries.Delivered():
            recorder.record(orders.Delivered, "delivered")
        case deliveries.Failed():  # also during a cancellation for another reason: the parcel returns in any case
            recorder.record(orders.Cancelling, reason=DELIVERY_FAILED)
            recorder.record(orders.Undone, step="delivery")
        case deliveries.CalledOff() if order.status == "confirmed":
            if order.reason is None:
                recorder.record(orders.Cancelling, reason="failed")
            recorder.record(orders.Undone, step="delivery")


# ---- events that follow by themselves --------------------------------------------------------------------------------


def finish(recorder: EventRecorder) -> None:
    """Request the refund when it is the next step to undo, and end an order whose steps are all undone."""
    while (order := recorder.state) is not None and order.reason is not None:
        effect = order.next_to_undo
        if effect == "payment" and order.captured is not None:
            if order.refundable > 0:
                refund_id = derive_id(order.order_id, "compensation", str(len(order.refunds)))
                amount = order.captured.model_copy(update={"amount": order.refundable})
                recorder.record(orders.RefundAsked, refund_id=refund_id, amount=amount)
            elif not order.open_refunds:
                recorder.record(orders.Undone, step="payment")
            else:
                return
        elif effect is None and order.status != "cancelled":
            given = order.captured and order.captured.model_copy(update={"amount": order.refunded})
            recorder.record(orders.Cancelled, "cancelled", reason=order.reason, refunded=given)
        else:
            return
