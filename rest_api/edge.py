"""The parts of the edge as the routes see them, and who is asking, with the limits that apply to them."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.requests import HTTPConnection

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
    """Everything that a route may need; built once, in `__main__`."""

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
    """The edge that a request came to."""
    edge: Edge = request.app.state.edge
    return edge


async def _edge(request: Request) -> Edge:
    return of(request)


_SCHEMES = (
    Security(HTTPBearer(auto_error=False, description="a token of POST /v1/guests")),
    Security(APIKeyCookie(name=COOKIE, auto_error=False, description="the cookie of POST /v1/guests")),
)


_CHANGING = ("/v1/cart", "/v1/orders", "/v1/reservations", "/v1/notifications")
"""Routes whose unsafe requests count as changes; the others hand out tokens and tickets."""
STAFF = frozenset({"admin", "support"})
"""Who sees everybody's orders."""


async def visitor(request: Request) -> Identity | None:
    """Whoever asks, known or not; the limits are the user's, else the address's."""
    edge = of(request)
    try:
        identity = edge.identities.identify(request)
    except Problem:
        edge.limiter.visitor(request)
        raise
    if identity is None:
        edge.limiter.visitor(request)
        return None
    changing = request.method not in SAFE and request.url.path.startswith(_CHANGING)
    count(edge, request, identity.user_id, changing=changing)
    return identity


def count(edge: Edge, connection: HTTPConnection, user_id: str, *, changing: bool) -> None:
    """Count a request of a user; `Problem` when they have had too many."""
    rules, shopper = edge.hub.rules, edge.hub.shopper(user_id)
    allowance, size = (shopper.changes, rules.changes) if changing else (shopper.others, rules.others)
    if allowance is not None and size is not None:
        limit(connection, allowance, size, time.time())


async def anybody(request: Request) -> Identity | None:
    """Whoever asks for what is there for all. A cookie that does not count is none: its holder can't take it away."""
    if "authorization" in request.headers:
        return await visitor(request)
    try:
        return await visitor(request)
    except Problem as problem:
        if problem.slug == "rate-limited":
            raise
        return None


async def newcomer(request: Request) -> Identity | None:
    """Whoever asks to become a guest."""
    of(request).identities.check_origin(request)
    return await anybody(request)


async def shopper(request: Request) -> Identity:
    """Whoever asks, who must be known."""
    identity = await visitor(request)
    if identity is None:
        raise Problem("unauthenticated", "this needs a token; get one from POST /v1/guests")
    return identity


def _with_role(*roles: str) -> Callable[[Request], Awaitable[Identity]]:
    async def holder(request: Request) -> Identity:
        identity = await shopper(request)
        if identity.roles.isdisjoint(roles):
            raise Problem("forbidden", f"this needs the role {' or '.join(roles)}")
        return identity

    return holder


Here = Annotated[Edge, Depends(_edge)]
Newcomer = Annotated[Identity | None, Depends(newcomer)]
Anybody = Annotated[Identity | None, Depends(anybody)]
Known = Annotated[Identity, Depends(shopper)]
Admin = Annotated[Identity, Depends(_with_role("admin"))]
Staff = Annotated[Identity, Depends(_with_role(*sorted(STAFF)))]
Service = Annotated[Identity, Depends(_with_role("service"))]
SECURED = list(_SCHEMES)
"""What a router declares so that the OpenAPI document says how to authenticate."""
