"""Middleware that answers a request with a problem document if its handler failed: the last `except` of HTTP."""

import logging

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contracts.trace_context import child_traceparent, trace_id
from rest_api.protocol.problems import Problem

log = logging.getLogger(__name__)


class ErrorsMiddleware:
    """Middleware that converts exceptions into problem documents, or re-raises them once a response has started."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request. An exception of a WebSocket is the endpoint's own business."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope["state"]["request_id"]
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Problem as problem:
            if started:
                raise
            await problem.response(request_id)(scope, receive, send)
        except Exception:
            trace = trace_id(child_traceparent(HTTPConnection(scope).headers.get("traceparent")))
            log.exception("a request could not be answered", extra={"trace": trace, "requestid": request_id})
            if started:
                raise
            await Problem("internal", trace_id=trace).response(request_id)(scope, receive, send)
