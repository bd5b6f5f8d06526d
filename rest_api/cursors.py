"""Opaque cursors of lists: what the last entry of a page is ordered by, as text that clients send back unread."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from fastapi import Request, Response

from rest_api.problems import Problem

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MOST: Final = 2**52
"""Of an instant in microseconds: far beyond any order, and a year that Python and Postgres know."""


def sealed(*values: str | int) -> str:
    """A cursor of these values."""
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def opened(cursor: str) -> list[Any]:
    """The values in a cursor; `Problem` when it is none. A text among them has no NUL, a number at most eight bytes."""
    try:
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, TypeError):
        raise Problem("bad-cursor") from None
    if not (isinstance(values, list) and all(_storable(value) for value in values)):
        raise Problem("bad-cursor")
    return values


def _storable(value: object) -> bool:
    return "\0" not in value if isinstance(value, str) else type(value) is int and -(2**63) <= value < 2**63


def instant(at: datetime) -> int:
    """A time as a cursor holds it."""
    return (at - EPOCH) // _MICROSECOND


def at_instant(value: int) -> datetime:
    """The time in a cursor; `Problem` when there is no such time."""
    if not 0 <= value < _MOST:
        raise Problem("bad-cursor")
    return EPOCH + value * _MICROSECOND


def page(items: list[Any], after: str | None, request: Request) -> Response:
    """A page of a list, with a link to the next one."""
    headers = {}
    if after is not None:
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
        headers["Link"] = f'<{request.url.path}?{urlencode([*query, ("after", after)])}>; rel="next"'
    return Response(orjson.dumps({"items": items, "after": after}), headers=headers, media_type="application/json")
