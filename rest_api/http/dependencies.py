"""FastAPI dependencies: the parts of the edge, the authenticated user, and the rate limits."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.requests import HTTPConnection

from infrastructure.process import clock
from infrastructure.security.tokens import Identity
from rest_api.protocol.problems import Problem
from rest_api.read_models.accounts import AccountEvents
from rest_api.read_models.catalogue import CatalogueReadModel
from rest_api.read_models.claims import ClaimStore
from rest_api.read_models.insights import InsightReadModel
from rest_api.read_models.notices import NoticeReadModel
from rest_api.read_models.orders.projector import OrderProjector
from rest_api.read_models.orders.queries import OrderStore
from rest_api.read_models.payment_status import PaymentStatus
from rest_api.read_models.store import Store
from rest_api.security.account_client import AccountClient
from rest_api.security.address_limiter import AddressLimiter, enforce_limit
from rest_api.security.authentication import SESSION_COOKIE, Authenticator
from rest_api.security.costs import ROUTES, Cost, is_change, route_cost
from rest_api.settings import EdgeSettings
from rest_api.websocket.connections import ConnectionManager


@dataclass(frozen=True)
class AppState:
    """The application state that routes use; built once, in `__main__`."""

    settings: EdgeSettings
    connections: ConnectionManager
    store: Store
    claims: ClaimStore
    catalogue: CatalogueReadModel
    order_queries: OrderStore
    order_projector: OrderProjector
    payment_status: PaymentStatus
    insights: InsightReadModel
    notices: NoticeReadModel
    authenticator: Authenticator
    address_limiter: AddressLimiter
    account_client: AccountClient
    account_events: AccountEvents


@dataclass(frozen=True, slots=True)
class AccountToken:
    """A verified access token, to be passed on to the account service, and its claims."""

    identity: Identity
    token: str


def app_state(request: Request) -> AppState:
    """Return the application state of a request."""
    edge: AppState = request.app.state.edge
    return edge


async def _app_state(request: Request) -> AppState:
    return app_state(request)


class _DescribedBearer(HTTPBearer):
    """The scheme in the OpenAPI document. `authenticate` reads the header, so this does not."""

    async def __call__(self, request: HTTPConnection) -> None:
        """Do nothing."""


class _DescribedCookie(APIKeyCookie):
    """The scheme in the OpenAPI document. `authenticate` reads the cookie, so this does not."""

    async def __call__(self, request: HTTPConnection) -> None:
        """Do nothing."""


_SCHEMES = (
    Security(_DescribedBearer(scheme_name="HTTPBearer", description="a token of POST /v1/guests or POST /v1/sessions")),
    Security(
        _DescribedCookie(
            name=SESSION_COOKIE,
            scheme_name="APIKeyCookie",
            description="the cookie of POST /v1/guests or POST /v1/sessions",
        )
    ),
)


STAFF_ROLES = frozenset({"admin", "support"})
"""Roles that may see the orders of all users."""


async def authenticate(request: Request) -> Identity | None:
    """Authenticate a request, and count it against the user's limit, or without a user against the network's.

    The middleware has counted one request for the network already; an expensive one is counted for more here.
    """
    edge = app_state(request)
    try:
        identity = await edge.authenticator.authenticate(request)
    except Problem:
        edge.address_limiter.count_request(request)
        raise
    if identity is None:
        edge.address_limiter.count_request(request)
        return None
    changing = is_change(request.method, request.url.path)
    count_user_request(edge, request, identity.user_id, changing=changing)
    return identity


def count_user_request(edge: AppState, connection: HTTPConnection, user_id: str, *, changing: bool) -> None:
    """Count a request against a user's limit, at the cost of its route; raise `Problem` if it is exceeded."""
    rules, user = edge.connections.user_limits, edge.connections.user_state(user_id)
    allowance, size = (user.change_allowance, rules.changes) if changing else (user.other_allowance, rules.others)
    if allowance is None or size is None:
        return
    method, route = connection.scope.get("method", "GET"), getattr(connection.scope.get("route"), "path_format", "")
    cost = route_cost(method, route, connection.query_params.get("limit", ""), size)
    enforce_limit(connection, allowance, size, clock.now().timestamp(), cost)
    if cost > 1:
        edge.address_limiter.count_any(connection, cost=cost - 1)


async def authenticate_optional(request: Request) -> Identity | None:
    """Authenticate a request to a public route. An invalid cookie is ignored, because its holder cannot remove it."""
    if "authorization" in request.headers:
        return await authenticate(request)
    try:
        return await authenticate(request)
    except Problem as problem:
        if problem.slug == "rate-limited":
            raise
        return None


async def authenticate_new_guest(request: Request) -> Identity | None:
    """Authenticate a request for a guest token, from an allowed origin only, and count it as a new guest's."""
    edge = app_state(request)
    edge.authenticator.check_origin(request)
    identity = await authenticate_optional(request)
    if identity is None:
        edge.address_limiter.count_guest(request)
    return identity


async def count_without_user(request: Request) -> None:
    """Count a request that brings its own proof against the limits of its network; refuse a foreign page.

    A token or cookie of the request does not matter here.
    """
    edge = app_state(request)
    edge.authenticator.check_origin(request)
    edge.address_limiter.count_request(request)
    cost = ROUTES.get(f"{request.method} {getattr(request.scope.get('route'), 'path_format', '')}")
    if isinstance(cost, Cost):
        edge.address_limiter.count_any(request, cost=cost.of(edge.settings.limit_network_others) - 1)


async def require_account(request: Request) -> AccountToken:
    """Authenticate a request about the user's own account. The account service refuses the token of a guest."""
    return _with_token(request, await require_user(request))


async def require_admin(request: Request) -> AccountToken:
    """Authenticate a request of an administrator."""
    return _with_token(request, await _require_role("admin")(request))


def _with_token(request: Request, identity: Identity) -> AccountToken:
    token = app_state(request).authenticator.credential(request)
    assert token is not None
    return AccountToken(identity, token)


async def require_user(request: Request) -> Identity:
    """Authenticate a request; raise `Problem` if it has no credentials."""
    identity = await authenticate(request)
    if identity is None:
        raise Problem("unauthenticated", "no token; get one from POST /v1/guests")
    return identity


def _require_role(*roles: str) -> Callable[[Request], Awaitable[Identity]]:
    async def require_role(request: Request) -> Identity:
        identity = await require_user(request)
        if identity.roles.isdisjoint(roles):
            raise Problem("forbidden", f"the role {' or '.join(roles)} is required")
        return identity

    return require_role


AppStateDep = Annotated[AppState, Depends(_app_state)]
NewGuest = Annotated[Identity | None, Depends(authenticate_new_guest)]
OptionalUser = Annotated[Identity | None, Depends(authenticate_optional)]
CurrentUser = Annotated[Identity, Depends(require_user)]
AdminUser = Annotated[Identity, Depends(_require_role("admin"))]
AccountUser = Annotated[AccountToken, Depends(require_account)]
AdminToken = Annotated[AccountToken, Depends(require_admin)]
StaffUser = Annotated[Identity, Depends(_require_role(*sorted(STAFF_ROLES)))]
ServiceUser = Annotated[Identity, Depends(_require_role("service"))]
SECURITY_DEPENDENCIES = list(_SCHEMES)
"""Dependencies of a router, so that the OpenAPI document says how to authenticate."""
