"""Counts every HTTP request against the limit that all users of a client network share."""

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from rest_api.security.address_limiter import AddressLimiter
from rest_api.security.costs import UNCOUNTED_PATHS


class NetworkBudgetMiddleware:
    """Middleware that refuses a request with 429 if its network has exceeded the limit.

    It comes before routing, so no route can lack a limit. Probes are not counted: an orchestrator must always get an
    answer, and a refusal would cost as much. A webhook has a signature instead; one without it is counted by its route.
    """

    def __init__(self, app: ASGIApp, *, limiter: AddressLimiter) -> None:
        self.app = app
        self.limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request; the endpoint of a WebSocket counts its handshake."""
        if scope["type"] == "http" and scope["path"] not in UNCOUNTED_PATHS:
            self.limiter.count_any(HTTPConnection(scope))
        await self.app(scope, receive, send)
