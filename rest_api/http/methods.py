"""Methods of a path: the value of `Allow` in the answer to OPTIONS and in a 405 (RFC 9110, section 10.2.1)."""

from typing import Final

from fastapi import Request
from starlette.routing import Match

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
"""Methods that routes may have, in the order of `Allow`; HEAD is supported where GET is. OPTIONS is not listed."""


def allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes on the path of a request; empty if there is no route."""
    return [method for method in METHODS if _has_route(request, "GET" if method == "HEAD" else method)]


def has_representation(request: Request) -> bool:
    """Return True if the path of a request can be read, so that conditions can refer to what GET returns."""
    return _has_route(request, "GET")


def _has_route(request: Request, method: str) -> bool:
    scope = {"type": "http", "path": request.scope["path"], "method": method, "headers": [], "root_path": ""}
    return any(route.matches(dict(scope))[0] is Match.FULL for route in request.app.routes)
