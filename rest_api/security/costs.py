"""The cost of each frame and route against the limits per minute. Pure.

A request that is cheap for its sender and expensive for the shop costs more than one: it then uses up a larger share of
the limit. The limits by user and by network apply the same costs. The table in `docs/services/edge.md` lists them; a
test compares it with this module and with the routes of the application.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

CHANGE_ROUTES: Final = ("/v1/cart", "/v1/orders", "/v1/reservations", "/v1/notifications")
"""Routes whose unsafe requests count as changes; the others issue tokens and tickets."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

PAGE_ITEMS: Final = 50
"""Items of a list that cost one request."""
WATCHED_PRODUCTS: Final = 10
"""Products of a `watch` that cost one request."""


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost that grows with the limit: `per_minute` such requests use up the limit of a minute.

    A limit below `per_minute` counts the request as one.
    """

    per_minute: int

    def of(self, size: int) -> int:
        """Return the cost against a limit of `size`."""
        return max(1, size // self.per_minute)


class Budget(Enum):
    """The budgets that are not a fixed cost."""

    ONE = auto()
    """One request of the user's limit, or without a user of the limit for anonymous requests."""
    LIST = auto()
    """One request for each 50 items of the page."""
    NETWORK = auto()
    """One request of the network's limit only: a small file or text that is the same for all clients."""
    UNCOUNTED = auto()
    """No limit: a refusal would cost as much as the answer, or the sender has a signature."""


CART_READ: Final = Cost(120)
"""A read of the whole cart: some 50 bytes in, up to 15 KiB out and twice through Kafka."""
OUTCOME_READ: Final = Cost(300)
"""A read of one outcome: the carts' answer on Kafka contains the whole cart."""
FIGURES: Final = Cost(120)
"""A page of windows, each with all figures."""
RENEWAL: Final = Cost(60)
"""A fresh token for a guest: a write to Postgres. A new guest is counted as an anonymous request and as a guest."""
PASSWORD: Final = Cost(60)
"""A request that hashes a password, or sends a mail: tens of milliseconds of a core."""
HANDSHAKE: Final = Cost(60)
"""A socket: a session, a greeting, and a read of the cart."""
WHOLE_STOCK: Final = Cost(8)
"""A `watch` of all products: 14 KiB of such frames would otherwise bring 15 MB."""

RouteCost = Cost | Budget
ROUTES: Final[Mapping[str, RouteCost]] = {
    "POST /v1/guests": RENEWAL,
    "POST /v1/ws-tickets": Budget.ONE,
    "POST /v1/accounts": PASSWORD,
    "POST /v1/accounts/confirm": Budget.ONE,
    "POST /v1/accounts/password-reset": PASSWORD,
    "POST /v1/accounts/password": PASSWORD,
    "POST /v1/sessions": PASSWORD,
    "POST /v1/sessions/refresh": Budget.ONE,
    "GET /v1/sessions": Budget.ONE,
    "DELETE /v1/sessions": Budget.ONE,
    "DELETE /v1/sessions/{session_id}": Budget.ONE,
    "GET /v1/me": Budget.ONE,
    "PATCH /v1/me": Budget.ONE,
    "DELETE /v1/me": PASSWORD,
    "PUT /v1/me/password": PASSWORD,
    "GET /v1/users": Budget.LIST,
    "GET /v1/users/{user_id}": Budget.ONE,
    "PUT /v1/users/{user_id}/roles": Budget.ONE,
    "POST /v1/users/{user_id}/disable": Budget.ONE,
    "GET /.well-known/jwks.json": Budget.NETWORK,
    "GET /v1/products": Budget.LIST,
    "GET /v1/products/{code}": Budget.ONE,
    "GET /v1/products/{code}/related": Budget.ONE,
    "GET /v1/analytics/{figure}": FIGURES,
    "GET /v1/cart": CART_READ,
    "POST /v1/cart/items": Budget.ONE,
    "PUT /v1/cart/items/{product}": Budget.ONE,
    "DELETE /v1/cart/items/{product}": Budget.ONE,
    "DELETE /v1/cart": Budget.ONE,
    "GET /v1/cart/requests/{request_id}": OUTCOME_READ,
    "POST /v1/orders": Budget.ONE,
    "GET /v1/orders": Budget.LIST,
    "GET /v1/orders/{order_id}": Budget.ONE,
    "GET /v1/orders/{order_id}/events": Budget.LIST,
    "GET /v1/orders/{order_id}/payments": Budget.LIST,
    "GET /v1/orders/{order_id}/shipment": Budget.ONE,
    "POST /v1/orders/{order_id}/cancel": Budget.ONE,
    "POST /v1/orders/{order_id}/payments": Budget.ONE,
    "POST /v1/orders/{order_id}/refunds": Budget.ONE,
    "POST /v1/reservations": Budget.ONE,
    "GET /v1/reservations/{reservation_id}": Budget.ONE,
    "POST /v1/reservations/{reservation_id}/commit": Budget.ONE,
    "DELETE /v1/reservations/{reservation_id}": Budget.ONE,
    "GET /v1/notifications": Budget.LIST,
    "POST /v1/notifications": Budget.ONE,
    "GET /v1/notifications/preferences": Budget.ONE,
    "PUT /v1/notifications/preferences": Budget.ONE,
    "POST /v1/webhooks/payments": Budget.UNCOUNTED,
    "GET /v1/stream": Budget.NETWORK,
    "GET /livez": Budget.UNCOUNTED,
    "GET /readyz": Budget.UNCOUNTED,
    "GET /metrics": Budget.NETWORK,
    "GET /openapi.json": Budget.NETWORK,
    "GET /asyncapi.json": Budget.NETWORK,
    "GET /docs": Budget.NETWORK,
    "GET /docs/{name}": Budget.NETWORK,
    "GET /problems": Budget.NETWORK,
    "GET /problems/": Budget.NETWORK,
    "GET /problems/{slug}": Budget.NETWORK,
    "GET /": Budget.NETWORK,
    "GET /analytics": Budget.NETWORK,
    "GET /static/{name}": Budget.NETWORK,
    "GET /test": Budget.NETWORK,
    "POST /migration": Budget.ONE,
    "GET /cart/update-product": Budget.NETWORK,
}
"""Cost of each route. A route that is missing here costs one request."""
FRAMES: Final[Mapping[str, RouteCost]] = {
    "add": Budget.ONE,
    "set": Budget.ONE,
    "remove": Budget.ONE,
    "clear": Budget.ONE,
    "checkout": Budget.ONE,
    "check": Budget.ONE,
    "cart": CART_READ,
    "watch": WHOLE_STOCK,
    "unwatch": Budget.ONE,
    "resume": CART_READ,
}
"""Cost of each client frame. A `watch` that names products costs one for each ten of them, if that is less."""
UNCOUNTED_PATHS: Final = frozenset(
    name.partition(" ")[2] for name, budget in ROUTES.items() if budget is Budget.UNCOUNTED
)


def is_change(method: str, path: str) -> bool:
    """Return whether an HTTP request counts against the limit of changes."""
    return method not in SAFE_METHODS and path.startswith(CHANGE_ROUTES)


def route_cost(method: str, route: str, limit: str, size: int) -> int:
    """Return the cost of a request against a limit of `size`; `limit` is the text of its parameter of that name."""
    match ROUTES.get(f"{method} {route}"):
        case Cost() as cost:
            return cost.of(size)
        case Budget.LIST if limit.isascii() and limit.isdigit() and len(limit) <= len("100"):
            return max(1, -(-int(limit) // PAGE_ITEMS))
        case _:
            return 1


def frame_cost(kind: object, products: object, size: int) -> int:
    """Return the cost of a client frame against a limit of `size`; `products` is its field of that name."""
    cost = FRAMES.get(kind) if isinstance(kind, str) else None
    if not isinstance(cost, Cost):
        return 1
    if kind == "watch" and isinstance(products, list):
        return min(cost.of(size), max(1, -(-len(products) // WATCHED_PRODUCTS)))
    return cost.of(size)
