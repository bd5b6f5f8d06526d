"""Ids and product codes that need encoding in a path, and the routes of the edge as a table."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from fastapi import FastAPI
from fastapi.routing import RouteContext, iter_route_contexts

from contracts.url_paths import encode_segment
from rest_api.__main__ import build_state
from rest_api.app import create_app
from rest_api.settings import EdgeSettings

ODD_IDS: Final = (
    "KDP/601",
    "/x",
    "x/",
    "a//b",
    "x/related",
    "/",
    "x/commit",
    "%2F",
    "%",
    "%zz",
    "50%off",
    "%252F",
    "order 17/2",
    " x ",
    "q?x=1",
    "po#1",
    "a+b",
    "a;b",
    "a&b=c",
    '"quoted"',
    "<b>",
    "a\\b",
    "{id}",
    "~!@$^*()[]|:,.'`",
    "...",
    ".x",
    "../x",
    "./x",
    "..",
    ".",
    "requests",
    "*",
    "x" * 64,
    "/" * 64,
)
"""Ids of printable ASCII, as the contract allows them."""


class RouteEntry(NamedTuple):
    """A route of the edge: one method, its path with parameters in braces, and FastAPI's description of it."""

    method: str
    path: str
    route: RouteContext

    def url(self, **values: str) -> str:
        """Return the path with its parameters replaced, and encoded; `x` where no value is given."""
        names = self.route.param_convertors if "{" in self.path else ()
        return self.path.format(**{name: encode_segment(values.get(name, "x")) for name in names})


def edge_app() -> FastAPI:
    """Return the application of an edge whose parts are not started."""
    return create_app(build_state(EdgeSettings(), 8080)[0])


def edge_routes(app: FastAPI) -> Iterator[RouteEntry]:
    """Return all HTTP routes of the edge, found by asking the application."""
    for context in iter_route_contexts(app.routes):
        for method in sorted(context.methods or ()) if context.path_format else ():
            yield RouteEntry(method, str(context.path_format), context)
