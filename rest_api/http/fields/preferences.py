"""The header field `Prefer` (RFC 7240)."""

import re
from typing import Final

from rest_api.http.fields import lists

MAX_WAIT_SECONDS: Final = 30
_SECONDS: Final = re.compile(r"[0-9]+")
_MAX_DIGITS: Final = 9


def preferences(value: str) -> dict[str, str]:
    """Return the preferences by lower-case name. The first of duplicates counts; their parameters are dropped."""
    found: dict[str, str] = {}
    for member in lists.split(value, ","):
        preference = lists.parameter(lists.split(member, ";")[0]) if not member.startswith(";") else None
        if preference is not None:
            found.setdefault(*preference)
    return found


def wait_seconds(value: str | None) -> int | None:
    """Return the seconds of the preference `wait`, at most `MAX_WAIT_SECONDS`; `None` without one, or for 0."""
    seconds = preferences(value or "").get("wait", "")
    if not _SECONDS.fullmatch(seconds):
        return None
    digits = seconds.lstrip("0")
    return (MAX_WAIT_SECONDS if len(digits) > _MAX_DIGITS else min(int(digits or 0), MAX_WAIT_SECONDS)) or None
