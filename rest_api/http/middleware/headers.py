"""Adds the headers that every HTTP response has: security, caching, and the rate limit that was counted."""

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rest_api.security.token_bucket import WINDOW_SECONDS

_CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_VIEWER_CSP: Final = _CSP.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""The policy of `/docs` only: the viewer there writes styles into the page."""
_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_HSTS: Final = "max-age=31536000"
"""A year, without sub-domains, which may be other people's."""
_CACHEABLE: Final = ("/static", "/docs/")
"""Paths whose responses may be cached."""


class HeadersMiddleware:
    """Middleware that adds headers to responses. It does not replace headers that a route has set."""

    def __init__(self, app: ASGIApp, *, requires_tls: bool) -> None:
        """`requires_tls` makes browsers that arrive over TLS use only TLS for this host from now on (HSTS)."""
        self.app = app
        self.requires_tls = requires_tls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                _add_headers(scope, headers)
                if self.requires_tls and scope.get("scheme") == "https":
                    headers["Strict-Transport-Security"] = _HSTS
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _add_headers(scope: Scope, headers: MutableHeaders) -> None:
    for name, value in _SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", _VIEWER_CSP if scope["path"] == "/docs" else _CSP)
    if not scope["path"].startswith(_CACHEABLE):
        headers.setdefault("Cache-Control", "no-store")
    counted = scope["state"].get("ratelimit")
    if counted is not None:
        size, remaining, wait = counted
        headers["RateLimit-Policy"] = f'"default";q={size};w={int(WINDOW_SECONDS)}'
        headers["RateLimit"] = f'"default";r={remaining};t={wait}'
