"""Refuses changes while the shop is overloaded, before anything else is done for them."""

from starlette.types import ASGIApp, Receive, Scope, Send

from infrastructure.process import clock
from rest_api.http.idempotency import overloaded
from rest_api.security.costs import is_change
from rest_api.websocket.connections import ConnectionManager


class AdmissionMiddleware:
    """Middleware that applies the admission control of the edge to changes.

    A change is counted when it is sent, in `InFlight.register`. But by then it has cost nearly as much as one that is
    admitted, so an overloaded edge would be busy with refusals.
    """

    def __init__(self, app: ASGIApp, *, connections: ConnectionManager) -> None:
        self.app = app
        self.connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request."""
        app = self.app
        if scope["type"] == "http" and is_change(scope["method"], scope["path"]):
            self.connections.measure_turn()
            if not self.connections.in_flight.has_room(clock.now().timestamp()):
                app = overloaded().response(scope["state"]["request_id"])
        await app(scope, receive, send)
