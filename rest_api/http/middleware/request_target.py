"""Brings the path of every request into its canonical form, and refuses paths and queries that are not UTF-8.

In a server's decoded path, `%2F` in an id looks like a `/` between two segments, so routes match on the canonical
path (`contracts/url_paths.py`), and the convertor of `path_parameters.py` decodes what a parameter matched.
"""

import re
from typing import Final
from urllib.parse import parse_qsl, quote

from starlette.types import ASGIApp, Receive, Scope, Send

from contracts.url_paths import canonical_path
from rest_api.protocol.problems import Problem, json_pointer

MAX_FIELDS: Final = 100
_UNDECODABLE: Final = re.compile("[\ud800-\udfff]")
"""A byte that is not UTF-8, as `surrogateescape` decodes it."""


class RequestTargetMiddleware:
    """Middleware that sets `scope["path"]` to the canonical path: each segment decoded and encoded exactly once."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        try:
            scope = {**scope, "path": _path(scope)}
            check_query(scope["query_string"])
        except Problem as problem:
            if scope["type"] == "websocket":
                await receive()
            await problem.response(scope["state"]["request_id"])(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _path(scope: Scope) -> str:
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    if not raw.startswith(b"/"):  # `*` of OPTIONS
        return str(scope["path"])
    try:
        return canonical_path(raw.decode("latin-1"))
    except ValueError as error:
        raise Problem("bad-request", str(error)) from None


def check_query(query: bytes) -> None:
    """Raise `Problem` if a query is not UTF-8, has too many fields, or contains U+0000, which cannot be stored."""
    try:
        text = query.decode("ascii")
        fields = parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise Problem("bad-request", "a query is ASCII; percent-encode other characters as UTF-8") from None
    except ValueError:
        raise Problem("bad-request", f"a query has at most {MAX_FIELDS} fields") from None
    for name, value in fields:
        if _UNDECODABLE.search(name + value):
            slug = "bad-cursor" if name == "after" else "bad-request"
            raise Problem(slug, "the percent-encoded bytes of the query must be UTF-8")
    errors = [
        {"pointer": json_pointer([name.replace("\0", "")]), "detail": "contains U+0000, which cannot be stored"}
        for name, value in fields
        if "\0" in name or "\0" in value
    ]
    if errors:
        raise Problem("invalid", errors=errors)
