"""Combines the lines of a header field that occurs more than once, so that all code after it sees one value."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from rest_api.protocol.problems import Problem

LISTS: Final = frozenset(
    name.encode()
    for name in (
        "accept",
        "accept-encoding",
        "accept-language",
        "content-encoding",
        "expect",
        "if-match",
        "if-none-match",
        "prefer",
    )
)
"""Fields whose value is a list: several lines mean one list (RFC 9110, section 5.3)."""
SINGLE: Final = frozenset(
    name.encode()
    for name in (
        "authorization",
        "content-type",
        "holdfast-signature",
        "idempotency-key",
        "if-modified-since",
        "if-unmodified-since",
    )
)
"""Fields with one value. Two components could choose different lines, so a second line is an error."""


class HeaderLinesMiddleware:
    """Middleware that joins the lines of list fields, and refuses a second line of a field with one value."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        seen: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in LISTS or name in SINGLE:
                seen.setdefault(name, []).append(value)
        repeated = {name: values for name, values in seen.items() if len(values) > 1}
        twice = [name.decode() for name in sorted(repeated) if name in SINGLE]
        if twice:
            if scope["type"] == "websocket":
                await receive()
            problem = Problem("bad-request", f"the header {twice[0]} occurs more than once; send it once")
            await problem.response(scope["state"]["request_id"])(scope, receive, send)
            return
        if repeated:
            others = [(name, value) for name, value in scope["headers"] if name not in repeated]
            joined = [(name, b", ".join(values)) for name, values in repeated.items()]
            scope = {**scope, "headers": [*others, *joined]}
        await self.app(scope, receive, send)
