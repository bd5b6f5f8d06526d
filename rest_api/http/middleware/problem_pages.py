"""Shows problems as pages to browsers: the outermost place through which every problem document passes."""

from typing import Any, Final

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rest_api.http.fields.media_types import HTML, PROBLEM, prefers_html
from rest_api.http.problem_pages import occurrence_page

_HTML_UTF_8: Final = f"{HTML}; charset=utf-8"


class ProblemPagesMiddleware:
    """Middleware that replaces a problem document by a page if `Accept` prefers HTML, and sets `Vary` on both."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        wants_page = prefers_html(", ".join(Headers(scope=scope).getlist("accept")))
        start: Any = None
        body = b""

        async def send_page(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type") == PROBLEM:
                    headers.add_vary_header("Accept")
                    if wants_page:
                        start = message
                        return
            elif start is not None:
                body += message.get("body", b"")
                if message.get("more_body", False):
                    return
                message, started = {**message, "body": occurrence_page(orjson.loads(body)).encode()}, start
                start = None
                headers = MutableHeaders(scope=started)
                headers["Content-Type"] = _HTML_UTF_8
                headers["Content-Length"] = str(len(message["body"]))
                await send(started)
            await send(message)

        await self.app(scope, receive, send_page)
