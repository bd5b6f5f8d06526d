"""The dependency of every route: refuses what a client sends and the route would otherwise ignore silently."""

from typing import Any, Final

from fastapi import Request
from fastapi.routing import APIRoute

from rest_api.http.methods import has_representation
from rest_api.protocol.problems import Problem, json_pointer
from rest_api.security.costs import SAFE_METHODS

CONDITIONAL_PATHS: Final = frozenset({"/v1/me"})
"""Paths whose changes can depend on `If-Match`."""


async def check_request(request: Request) -> None:
    """Raise `Problem` for a body that the route does not read, or a condition that a change cannot fulfil."""
    body = request.scope["state"].get("json")
    if body and not _reads_body(request):
        raise Problem("invalid", errors=_surplus(body))
    if request.method in SAFE_METHODS:
        return
    if "if-match" in request.headers and request.url.path not in CONDITIONAL_PATHS:
        raise Problem("precondition-failed", "changes do not support If-Match, and nothing was changed")
    if "if-none-match" in request.headers and has_representation(request):
        raise Problem("precondition-failed", "changes do not support If-None-Match, and nothing was changed")


def _reads_body(request: Request) -> bool:
    route = request.scope.get("route")
    return isinstance(route, APIRoute) and (
        route.body_field is not None or "requestBody" in (route.openapi_extra or {})
    )


def _surplus(body: Any) -> list[dict[str, str]]:
    names = [*body] if isinstance(body, dict) else []
    detail = "this route takes no body; leave it out"
    return [{"pointer": json_pointer([name]), "detail": detail} for name in names] or [
        {"pointer": "", "detail": detail}
    ]
