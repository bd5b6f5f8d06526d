"""Opaque pagination cursors: the sort values of a page's last entry, encoded as text."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from fastapi import Request, Response

from rest_api.protocol.problems import Problem

UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MAX_INSTANT: Final = 2**52
"""Upper bound of a time in microseconds: later than any order, and representable in Python and Postgres."""


def encode(*values: str | int) -> str:
    """Return a cursor that holds these values."""
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def decode(cursor: str) -> list[Any]:
    """Return the values of a cursor; raise `Problem` if it is malformed.

    Strings contain no NUL and integers fit into eight bytes, so Postgres can store every value.
    """
    try:
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, TypeError):
        raise Problem("bad-cursor") from None
    if not (isinstance(values, list) and all(_storable(value) for value in values)):
        raise Problem("bad-cursor")
    return values


def _storable(value: object) -> bool:
    return "\0" not in value if isinstance(value, str) else type(value) is int and -(2**63) <= value < 2**63


def to_microseconds(at: datetime) -> int:
    """Return a time as microseconds since 1970, the form that cursors hold."""
    return (at - UNIX_EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Return the time that `to_microseconds` converted to `value`; raise `Problem` if it is out of range."""
    if not 0 <= value < _MAX_INSTANT:
        raise Problem("bad-cursor")
    return UNIX_EPOCH + value * _MICROSECOND


def page_response(items: list[Any], after: str | None, request: Request, **more: Any) -> Response:
    """Return a page of a list as a response, with a `Link` to the next page if `after` is not `None`.

    `more` are further fields of the body. The path of a request is canonical, so its segments are encoded already.
    """
    headers = {}
    if after is not None:
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
        headers["Link"] = f'<{request.scope["path"]}?{urlencode([*query, ("after", after)])}>; rel="next"'
    return Response(
        orjson.dumps({"items": items, "after": after, **more}), headers=headers, media_type="application/json"
    )
