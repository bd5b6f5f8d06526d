"""FastAPI dependencies: the parts of the edge, the authenticated user, and the rate limits."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.requests import HTTPConnection

from infrastructure import clock
from infrastructure.tokens import Identity
from rest_api.hub import Hub
from rest_api.identity import COOKIE, SAFE, Identities
from rest_api.insights import Insights
from rest_api.limiter import Limiter, limit
from rest_api.notices import Notices
from rest_api.order_projection import OrderProjection
from rest_api.order_store import OrderStore
from rest_api.problems import Problem
from rest_api.projection import Projection
from rest_api.provider_watch import ProviderWatch
from rest_api.settings import EdgeSettings
from rest_api.store import Store


@dataclass(frozen=True)
class Edge:
    """The application state that routes use; built once, in `__main__`."""

    settings: EdgeSettings
    hub: Hub
    store: Store
    projection: Projection
    orders: OrderStore
    order_projection: OrderProjection
    providers: ProviderWatch
    insights: Insights
    notices: Notices
    identities: Identities
    limiter: Limiter


def of(request: Request) -> Edge:
    """Return the application state of a request."""
    edge: Edge = request.app.state.edge
    return edge


async def _app_state(request: Request) -> Edge:
    return of(request)


_SCHEMES = (
    Security(HTTPBearer(auto_error=False, description="a token of POST /v1/guests")),
    Security(APIKeyCookie(name=COOKIE, auto_error=False, description="the cookie of POST /v1/guests")),
)


_CHANGE_ROUTES = ("/v1/cart", "/v1/orders", "/v1/reservations", "/v1/notifications")
"""Routes whose unsafe requests count as changes; the others issue tokens and tickets."""
STAFF = frozenset({"admin", "support"})
"""Roles that may see the orders of all users."""


async def visitor(request: Request) -> Identity | None:
    """Authenticate a request, and count it against the user's limit, or without a user against the address's."""
    edge = of(request)
    try:
        identity = edge.identities.identify(request)
    except Problem:
        edge.limiter.visitor(request)
        raise
    if identity is None:
        edge.limiter.visitor(request)
        return None
    changing = request.method not in SAFE and request.url.path.startswith(_CHANGE_ROUTES)
    count(edge, request, identity.user_id, changing=changing)
    return identity


def count(edge: Edge, connection: HTTPConnection, user_id: str, *, changing: bool) -> None:
    """Count a request against a user's limit; raise `Problem` if it is exceeded."""
    rules, user = edge.hub.rules, edge.hub.shopper(user_id)
    allowance, size = (user.change_allowance, rules.changes) if changing else (user.other_allowance, rules.others)
    if allowance is not None and size is not None:
        limit(connection, allowance, size, clock.now().timestamp())


async def anybody(request: Request) -> Identity | None:
    """Authenticate a request to a public route. An invalid cookie is ignored, because its holder cannot remove it."""
    if "authorization" in request.headers:
        return await visitor(request)
    try:
        return await visitor(request)
    except Problem as problem:
        if problem.slug == "rate-limited":
            raise
        return None


async def newcomer(request: Request) -> Identity | None:
    """Authenticate a request for a guest token, from an allowed origin only."""
    of(request).identities.check_origin(request)
    return await anybody(request)


async def shopper(request: Request) -> Identity:
    """Authenticate a request; raise `Problem` if it has no credentials."""
    identity = await visitor(request)
    if identity is None:
        raise Problem("unauthenticated", "no token; get one from POST /v1/guests")
    return identity


def _require_role(*roles: str) -> Callable[[Request], Awaitable[Identity]]:
    async def holder(request: Request) -> Identity:
        identity = await shopper(request)
        if identity.roles.isdisjoint(roles):
            raise Problem("forbidden", f"the role {' or '.join(roles)} is required")
        return identity

    return holder


Here = Annotated[Edge, Depends(_app_state)]
Newcomer = Annotated[Identity | None, Depends(newcomer)]
Anybody = Annotated[Identity | None, Depends(anybody)]
Known = Annotated[Identity, Depends(shopper)]
Admin = Annotated[Identity, Depends(_require_role("admin"))]
Staff = Annotated[Identity, Depends(_require_role(*sorted(STAFF)))]
Service = Annotated[Identity, Depends(_require_role("service"))]
SECURED = list(_SCHEMES)
"""Dependencies of a router, so that the OpenAPI document says how to authenticate."""
