"""Commands on orders that arrive over HTTP; `idempotency.execute` executes them."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson

from contracts import cart, orders
from contracts.ids import derive_id
from contracts.url_paths import encode_segment
from infrastructure.process import clock
from rest_api.http.dependencies import AppState
from rest_api.http.schemas.orders import order_body
from rest_api.kafka.gateway import RETRY_AFTER, cart_request_envelope, request_envelope
from rest_api.protocol.client_frames import Wanted, order_id
from rest_api.protocol.effects import Publish
from rest_api.protocol.problems import Problem
from rest_api.read_models.orders.fold import OrderView
from rest_api.read_models.store import UNAVAILABLE_ERRORS
from rest_api.websocket.in_flight import Reply

log = logging.getLogger(__name__)

PROVIDER_RETRY_SECONDS: Final = 10
READ_MODEL_WAIT_SECONDS: Final = 2.0
"""How long a response waits for the read model to contain the decision."""
_CART_REFUSAL_SLUGS: Final = {
    "cart_changed": "cart-changed",
    "cart_empty": "cart-empty",
    "total_changed": "total-changed",
    "expired": "cart-expired",
    "out_of_stock": "out-of-stock",
    "unknown_product": "unknown-product",
    "other_currency": "other-currency",
    "limit": "over-limit",
    "payment_unavailable": "payment-unavailable",
}
_ORDER_REFUSAL_SLUGS: Final = {
    "unknown_order": "not-found",
    "not_cancellable": "order-not-cancellable",
    "already_refunded": "already-refunded",
    "refund_too_large": "refund-too-large",
    "already_paid": "already-paid",
    "not_paid": "not-paid",
}


def refusal_problem(message: cart.Refused) -> Problem:
    """Return the problem that reports a refused order or reservation."""
    slug = _CART_REFUSAL_SLUGS.get(message.reason)
    prefix = f"{message.product}: " if message.product else ""
    if slug is None:
        return Problem(
            "unavailable",
            "the request could not be decided, and nothing was changed; try again",
            retry_after=RETRY_AFTER,
        )
    if message.available is not None:
        return Problem(slug, f"{prefix}{message.available} available")
    return Problem(slug, retry_after=PROVIDER_RETRY_SECONDS if slug == "payment-unavailable" else None)


async def orders_closed(edge: AppState, order: str) -> bool:
    """Return True if a new order must be refused because the payment provider is down.

    An order that already exists is exempt. If the read model cannot be read, the order counts as new.
    """
    if not edge.payment_status.is_unavailable():
        return False
    try:
        return await edge.order_queries.order(order) is None
    except UNAVAILABLE_ERRORS:
        return True


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """The command of `POST /v1/orders`: a checkout, like the frame `checkout`."""

    user_id: str
    order: Wanted

    @property
    def fingerprint(self) -> str:
        """A digest of the command, so that no address is stored with the idempotency key."""
        command = orjson.dumps(self.order.command(), option=orjson.OPT_SORT_KEYS)
        return f"checkout {hashlib.sha256(command).hexdigest()}"

    @property
    def reply_to_user(self) -> str:
        """The user who places the order."""
        return self.user_id

    def request_id(self, key: str) -> str:
        """Derive the request id from the key. Like the ids of frames, request ids are scoped to the user."""
        return derive_id("POST", "/v1/orders", key)

    async def check(self, edge: AppState, request_id: str) -> None:
        """Raise `Problem` if the order is new and no payment can be taken."""
        if await orders_closed(edge, order_id(self.user_id, request_id)):
            raise Problem("payment-unavailable", retry_after=PROVIDER_RETRY_SECONDS)

    async def send(self, edge: AppState, request_id: str) -> bool:
        """Send the checkout to the cart service, then make the order readable."""
        order = order_id(self.user_id, request_id)
        data = {"user_id": self.user_id, "order_id": order, **self.order.command()}
        if not await edge.connections.send(cart_request_envelope(self.user_id, Publish(request_id, "checkout", data))):
            return False
        now = clock.now()
        try:
            await edge.order_queries.insert_placed(
                order, self.user_id, now.replace(microsecond=now.microsecond // 1000 * 1000)
            )
        except UNAVAILABLE_ERRORS as error:  # its events will make it readable
            log.warning("order not yet readable, its row could not be inserted: %r", error)
        return True

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """Return the order's id and where it can be read."""
        order = order_id(self.user_id, request_id)
        return {"order_id": order}, f"/v1/orders/{encode_segment(order)}"

    async def response_body(self, edge: AppState, answer: Reply) -> bytes:
        """Return the order, whose stock is now held; raise `Problem` if it was refused."""
        if isinstance(answer.message, cart.Refused):
            raise refusal_problem(answer.message)
        assert isinstance(answer.message, cart.Order)
        return await _body_at(edge, answer.message)


@dataclass(frozen=True, slots=True)
class OrderCommand:
    """A command on an existing order. `order` is its last known state, `user_id` the user who sends the command."""

    SHIPPED_STATUSES: ClassVar = frozenset({"shipped", "delivered"})
    PAID_STATUSES: ClassVar = frozenset({"paid", "confirmed", "shipped", "delivered"})

    user_id: str
    order: OrderView
    request: orders.Cancel | orders.Refund | orders.Pay

    @property
    def fingerprint(self) -> str:
        """The request as JSON; it contains no personal data."""
        return f"{self.request.TYPE} {self.request.model_dump_json()}"

    @property
    def reply_to_user(self) -> str:
        """The owner of the order, who may differ from the user who sends the command."""
        return self.order.user_id

    def request_id(self, key: str) -> str:
        """Derive the request id from the sender and the key.

        Request ids are scoped to the order's owner, so the sender is part of the id: a key of support must not collide
        with the same key of the owner.
        """
        return derive_id(self.user_id, self.request.TYPE, key)

    async def check(self, edge: AppState, request_id: str) -> None:  # noqa: ARG002 - placing an order needs both
        """Raise `Problem` if the read model rules the command out. An order only moves forward, so this is final."""
        match self.request:
            case orders.Cancel() if self.order.status in self.SHIPPED_STATUSES:
                raise Problem("order-not-cancellable", f"the order is {self.order.status}")
            case orders.Pay() if self.order.status in self.PAID_STATUSES:
                raise Problem("already-paid")
            case orders.Refund(amount=amount) if amount is not None and self.order.total is not None:
                if amount.currency != self.order.total.currency:
                    fault = {
                        "pointer": "/amount/currency",
                        "detail": f"the order was paid in {self.order.total.currency}",
                    }
                    raise Problem("invalid", errors=[fault])
                if amount.amount > self.order.total.amount:
                    raise Problem("refund-too-large", f"the order's total is {self.order.total.amount}")

    async def send(self, edge: AppState, request_id: str) -> bool:
        """Send the request to the order service."""
        return await edge.connections.send(request_envelope(self.request, request_id), orders.REQUESTS)

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """Return the ids, and where the order can be read."""
        order = self.order.order_id
        return {"request_id": request_id, "order_id": order}, f"/v1/orders/{encode_segment(order)}"

    async def response_body(self, edge: AppState, answer: Reply) -> bytes:
        """Return the order as it is now; raise `Problem` if the command was refused."""
        if isinstance(answer.message, cart.OrderRefused):
            raise Problem(_ORDER_REFUSAL_SLUGS[answer.message.reason])
        assert isinstance(answer.message, cart.Order)
        return await _body_at(edge, answer.message)


async def _body_at(edge: AppState, decided: cart.Order) -> bytes:
    """Return the order's body at the decided version, or a short body if the read model lags."""
    try:
        view = await edge.order_projector.wait_for_version(
            decided.order_id, decided.order_version, seconds=READ_MODEL_WAIT_SECONDS
        )
    except UNAVAILABLE_ERRORS:
        view = None
    if view is None or view.version < decided.order_version:
        body = {"order_id": decided.order_id, "status": decided.status, "order_version": decided.order_version}
        return orjson.dumps(body if decided.reason is None else {**body, "reason": decided.reason})
    return orjson.dumps(await order_body(edge, view))
