"""What may be asked of orders over HTTP, and how each of it is sent and answered: see `changes.perform`."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson

from cart_service import messages as cart
from infrastructure import clock
from infrastructure.ids import derived
from order_service import messages as orders
from rest_api.edge import Edge
from rest_api.gateway import RETRY_AFTER
from rest_api.messages import Wanted
from rest_api.order_body import body_of
from rest_api.order_view import OrderView
from rest_api.outbound import event, order_id
from rest_api.problems import Problem
from rest_api.shopper import Publish
from rest_api.store import AWAY
from rest_api.waiting import Answer

log = logging.getLogger(__name__)

PROVIDER_RETRY_SECONDS: Final = 10
READABLE_SECONDS: Final = 2.0
"""How long an answer waits for the read model to have what has just been decided."""
_REFUSALS: Final = {
    "cart_changed": "cart-changed",
    "cart_empty": "cart-empty",
    "total_changed": "total-changed",
    "expired": "cart-expired",
    "out_of_stock": "out-of-stock",
    "unknown_product": "unknown-product",
    "limit": "over-limit",
    "payment_unavailable": "payment-unavailable",
}
_ORDER_REFUSALS: Final = {
    "unknown_order": "not-found",
    "not_cancellable": "order-not-cancellable",
    "already_refunded": "already-refunded",
    "refund_too_large": "refund-too-large",
    "already_paid": "already-paid",
    "not_paid": "not-paid",
}


def refused(message: cart.Refused) -> Problem:
    """A refusal as the problem that it is to who asked for an order or a reservation."""
    slug = _REFUSALS.get(message.reason)
    about = f"{message.product}: " if message.product else ""
    if slug is None:
        return Problem("unavailable", "it could not be decided, and nothing was done", retry_after=RETRY_AFTER)
    if message.available is not None:
        return Problem(slug, f"{about}{message.available} available")
    return Problem(slug, retry_after=PROVIDER_RETRY_SECONDS if slug == "payment-unavailable" else None)


async def refuses_orders(edge: Edge, order: str) -> bool:
    """Whether no order may be begun, because nobody could be charged for it; one that is there already goes on."""
    if not edge.providers.away():
        return False
    try:
        return await edge.orders.order(order) is None
    except AWAY:
        return True


@dataclass(frozen=True, slots=True)
class Placing:
    """`POST /v1/orders`: a checkout, as the frame of that name is one."""

    user_id: str
    wanted: Wanted

    @property
    def fingerprint(self) -> str:
        """A digest: where somebody lives has no place beside an idempotency key."""
        command = orjson.dumps(self.wanted.command(), option=orjson.OPT_SORT_KEYS)
        return f"checkout {hashlib.sha256(command).hexdigest()}"

    @property
    def told_to(self) -> str:
        """Whose order it is."""
        return self.user_id

    def name(self, key: str) -> str:
        """Of the user's own ids, as those of their frames are."""
        return derived("POST", "/v1/orders", key)

    async def check(self, edge: Edge, request_id: str) -> None:
        """Nothing is begun that can't be paid for."""
        if await refuses_orders(edge, order_id(self.user_id, request_id)):
            raise Problem("payment-unavailable", retry_after=PROVIDER_RETRY_SECONDS)

    async def send(self, edge: Edge, request_id: str) -> bool:
        """To the carts; then the order can be read."""
        order = order_id(self.user_id, request_id)
        data = {"user_id": self.user_id, "order_id": order, **self.wanted.command()}
        if not await edge.hub.publish(self.user_id, Publish(request_id, "checkout", data)):
            return False
        now = clock.now()
        try:
            await edge.orders.begin(order, self.user_id, now.replace(microsecond=now.microsecond // 1000 * 1000))
        except AWAY as error:  # its events will tell of it
            log.warning("an order can't be read yet: %r", error)
        return True

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """The order is there already."""
        order = order_id(self.user_id, request_id)
        return {"order_id": order}, f"/v1/orders/{order}"

    async def settled(self, edge: Edge, answer: Answer) -> bytes:
        """The order, once its stock is held for it."""
        if isinstance(answer.message, cart.Refused):
            raise refused(answer.message)
        assert isinstance(answer.message, cart.Order)
        return await _shown(edge, answer.message)


@dataclass(frozen=True, slots=True)
class Acting:
    """Something asked of an order that is there: `order` is what was known of it, `user_id` who asks."""

    SHIPPED: ClassVar = frozenset({"shipped", "delivered"})
    PAID: ClassVar = frozenset({"paid", "confirmed", "shipped", "delivered"})

    user_id: str
    order: OrderView
    request: orders.Cancel | orders.Refund | orders.Pay

    @property
    def fingerprint(self) -> str:
        """The request itself; it says nothing of a person."""
        return f"{self.request.TYPE} {self.request.model_dump_json()}"

    @property
    def told_to(self) -> str:
        """Whose order it is, whoever asks."""
        return self.order.user_id

    def name(self, key: str) -> str:
        """Of the ids of whose order it is: another's key must not be taken for theirs."""
        return derived(self.user_id, self.request.TYPE, key)

    async def check(self, edge: Edge, request_id: str) -> None:  # noqa: ARG002 - of a placing it needs both
        """What the read model shows to be impossible stays impossible: an order only goes forward."""
        match self.request:
            case orders.Cancel() if self.order.status in self.SHIPPED:
                raise Problem("order-not-cancellable", f"it is {self.order.status}")
            case orders.Pay() if self.order.status in self.PAID:
                raise Problem("already-paid")
            case orders.Refund(amount=amount) if amount is not None and self.order.total is not None:
                if amount.currency != self.order.total.currency:
                    fault = {"pointer": "/amount/currency", "detail": f"it was paid in {self.order.total.currency}"}
                    raise Problem("invalid", errors=[fault])
                if amount.amount > self.order.total.amount:
                    raise Problem("refund-too-large", f"the order came to {self.order.total.amount}")

    async def send(self, edge: Edge, request_id: str) -> bool:
        """To the order service."""
        return await edge.hub.send(event(self.request, request_id), orders.REQUESTS)

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """What comes of it is seen in the order."""
        order = self.order.order_id
        return {"request_id": request_id, "order_id": order}, f"/v1/orders/{order}"

    async def settled(self, edge: Edge, answer: Answer) -> bytes:
        """The order as it is now."""
        if isinstance(answer.message, cart.OrderRefused):
            raise Problem(_ORDER_REFUSALS[answer.message.reason])
        assert isinstance(answer.message, cart.Order)
        return await _shown(edge, answer.message)


async def _shown(edge: Edge, told: cart.Order) -> bytes:
    """An order as the answer tells of it, with all that the read model knows by then."""
    try:
        view = await edge.order_projection.reached(told.order_id, told.order_version, seconds=READABLE_SECONDS)
    except AWAY:
        view = None
    if view is None or view.version < told.order_version:
        body = {"order_id": told.order_id, "status": told.status, "order_version": told.order_version}
        return orjson.dumps(body if told.reason is None else {**body, "reason": told.reason})
    return orjson.dumps(await body_of(edge, view))
