"""Counts and times every HTTP request."""

import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infrastructure.observability import metrics

_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class RequestMetricsMiddleware:
    """Middleware that counts every request by method and status, and measures its duration.

    It must be outside of the error handling, to count failed requests too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request; WebSockets have metrics of their own."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        since = time.perf_counter()
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.EDGE_REQUESTS.labels(method, str(status)).inc()
            metrics.EDGE_REQUEST_SECONDS.labels(method).observe(time.perf_counter() - since)
