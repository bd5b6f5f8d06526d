"""Answers HEAD as GET."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadMiddleware:
    """Shows the application a GET for every HEAD; the server knows the real method and leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)
