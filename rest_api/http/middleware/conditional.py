"""Conditional reads (RFC 9110, section 13): 304 and 412, for every route whose response has an `ETag` or a date."""

from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rest_api.http.fields.entity_tags import strongly_matches, weakly_matches
from rest_api.protocol.problems import Problem

OK: Final = 200
NOT_MODIFIED: Final = 304
_RANGES: Final = frozenset({b"range", b"if-range"})


class ConditionalMiddleware:
    """Middleware that replaces a successful response to GET by 304 or 412 if the request's conditions say so.

    `Range` is ignored: all responses are whole. Conditions of changes are refused by `request_checks.py`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request; HEAD arrives as GET."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        conditions = Headers(scope=scope)
        scope = {**scope, "headers": [field for field in scope["headers"] if field[0] not in _RANGES]}
        replaced = False

        async def send_if_modified(message: Message) -> None:
            nonlocal replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "accept-ranges" in headers:
                    headers["Accept-Ranges"] = "none"
                if message["status"] == OK:
                    if not _precondition_holds(conditions, headers):
                        replaced = True
                        problem = Problem("precondition-failed", "the resource has changed, or has no such ETag")
                        await problem.response(scope["state"]["request_id"])(scope, receive, send)
                        return
                    if not _is_modified(conditions, headers):
                        replaced = True
                        await send({**message, "status": NOT_MODIFIED, "headers": _without_content(headers)})
                        await send({"type": "http.response.body", "body": b""})
                        return
            await send(message)

        await self.app(scope, receive, send_if_modified)


def _precondition_holds(conditions: Headers, headers: Headers) -> bool:
    if "if-match" in conditions:
        return strongly_matches(conditions["if-match"], headers.get("etag"))
    since, changed = _date(conditions.get("if-unmodified-since")), _date(headers.get("last-modified"))
    return since is None or changed is None or changed <= since


def _is_modified(conditions: Headers, headers: Headers) -> bool:
    if "if-none-match" in conditions:
        return not weakly_matches(conditions["if-none-match"], headers.get("etag"))
    since, changed = _date(conditions.get("if-modified-since")), _date(headers.get("last-modified"))
    return since is None or changed is None or changed > since


def _date(value: str | None) -> datetime | None:
    """Return the time of an HTTP date; `None` if it is missing or malformed."""
    try:
        found = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    return None if found.tzinfo is None else found


def _without_content(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers.raw if not name.startswith(b"content-")]
