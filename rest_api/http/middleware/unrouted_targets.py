"""Answers `OPTIONS *`, which asks about the whole server and not about a route."""

from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rest_api.http.methods import METHODS

_ALLOW: Final = {"Allow": ", ".join(METHODS)}


class UnroutedTargets:
    """The router's application for targets without a route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket."""
        if scope["type"] == "http" and scope["path"] == "*":
            await Response(status_code=204, headers=_ALLOW)(scope, receive, send)
            return
        await self.app(scope, receive, send)
