"""A small stand-in for orders and inventory behind the edge: it answers by the contract, from memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from contracts import cart, inventory, orders
from contracts.envelope import Envelope
from contracts.topics import Topic

PRICE: dict[str, Any] = {"amount": 295, "currency": "GBP"}
SCARCE = "SCARCE"
RELEASED_BEFORE: dict[str, Any] = {"state": "CANCELLED", "lines": []}
"""A reservation whose release came before its items, which closes it."""


@dataclass(frozen=True)
class OutgoingRecord:
    """A record to send: its topic, key and content."""

    topic: Topic
    source: str
    kind: str
    key: str
    data: dict[str, Any]


@dataclass
class FakeOrders:
    """Orders by id, as (user, status, version), and reservations by inventory's name for them."""

    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    reservations: dict[str, dict[str, Any]] = field(default_factory=dict)
    silent: bool = False

    def placed(self, checkout: Envelope, outcome: dict[str, Any]) -> Iterator[OutgoingRecord]:
        """The first two events of an order."""
        order_id, user = outcome["order_id"], checkout.subject
        self.orders[order_id] = {"user_id": user, "status": "placed", "version": 0, "captured": False}
        yield self.event(order_id, "placed", "placed", request_id=checkout.requestid)
        yield self.event(order_id, "committed", "committed", lines=outcome["lines"], total=outcome["total"])

    def event(self, order_id: str, kind: str, status: str, **more: Any) -> OutgoingRecord:
        """The next event of an order."""
        order = self.orders[order_id]
        order["version"] += 1
        order["status"] = status
        head = {"order_id": order_id, "user_id": order["user_id"], "version": order["version"], "status": status}
        return OutgoingRecord(orders.EVENTS, "/orders", f"holdfast.orders.{kind}", order_id, {**head, **more})

    def answers(self, event: Envelope) -> Iterator[OutgoingRecord]:
        """Return the records that answer a request."""
        if self.silent:
            return
        if event.type in orders.REQUEST_REGISTRY.types:
            yield from self._order(event)
        elif event.type in inventory.REQUEST_REGISTRY.types:
            yield self._reservation(event, inventory.REQUEST_REGISTRY.parse(event))

    def _order(self, event: Envelope) -> Iterator[OutgoingRecord]:
        request = orders.REQUEST_REGISTRY.parse(event)
        order = self.orders.get(request.order_id)
        about = {"user_id": request.user_id, "id": event.requestid, "order_id": request.order_id}
        refused: str | None = None
        match request:
            case _ if order is None or order["user_id"] != request.user_id:
                refused = "unknown_order"
            case orders.Cancel() if order["status"] in {"shipped", "delivered"}:
                refused = "not_cancellable"
            case orders.Cancel() if order["status"] != "cancelled":
                yield self.event(request.order_id, "cancelled", "cancelled", reason="cancelled")
            case orders.Pay() if order["captured"]:
                refused = "already_paid"
            case orders.Refund() if not order["captured"]:
                refused = "not_paid"
            case orders.Refund() if order.get("refunded"):
                refused = "already_refunded"
            case orders.Refund():
                order["refunded"] = True
        if refused:
            yield OutgoingRecord(
                cart.RESPONSES, "/orders", cart.OrderRefused.TYPE, request.user_id, {**about, "reason": refused}
            )
            return
        assert order is not None
        reason = {"reason": "cancelled"} if order["status"] == "cancelled" else {}
        told = {**about, "status": order["status"], "order_version": order["version"], **reason}
        yield OutgoingRecord(cart.RESPONSES, "/orders", cart.Order.TYPE, request.user_id, told)

    def _reservation(self, event: Envelope, request: inventory.Request) -> OutgoingRecord:
        user = request.user_id
        match request:
            case inventory.Commit(lines=lines) if any(line.product == SCARCE for line in lines or ()):
                refused = {"user_id": user, "id": event.requestid, "reason": "out_of_stock", "available": 0}
                return OutgoingRecord(cart.RESPONSES, "/cart", cart.Refused.TYPE, user, {**refused, "product": SCARCE})
            case inventory.Commit(order_id=order_id) if self.reservations.get(order_id) == RELEASED_BEFORE:
                refused = {"user_id": user, "id": event.requestid, "reason": "failed"}
                return OutgoingRecord(cart.RESPONSES, "/cart", cart.Refused.TYPE, user, refused)
            case inventory.Commit(order_id=order_id, lines=lines):
                held = [{**line.model_dump(), "price": PRICE} for line in lines or ()]
                self.reservations.setdefault(order_id, {"state": "PENDING", "lines": held})
            case inventory.Sell(order_id=order_id):
                self._end(order_id, "COMMITTED")
            case inventory.ReleaseOrder(order_id=order_id):
                self.reservations.setdefault(order_id, dict(RELEASED_BEFORE))
                self._end(order_id, "CANCELLED")
            case inventory.ReadReservation(order_id=order_id):
                pass
            case _:
                raise AssertionError(request)
        known = self.reservations.get(order_id, {"state": None})
        about = {"user_id": user, "id": event.requestid, "reservation_id": order_id}
        return OutgoingRecord(cart.RESPONSES, "/cart", cart.Reservation.TYPE, user, {**about, **known})

    def _end(self, order_id: str, state: str) -> None:
        known = self.reservations.get(order_id)
        if known is not None and known["state"] == "PENDING":
            known["state"] = state
