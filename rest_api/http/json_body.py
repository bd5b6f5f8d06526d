"""JSON bodies of requests, read strictly: one reading for every route (RFC 8259, with the rules of RFC 7493).

Parsers differ in how they read a name that occurs twice, NaN, numbers beyond a double, and half of a surrogate pair. A
change must not depend on the parser that reads it, so such bodies are refused.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final

from rest_api.protocol.problems import json_pointer

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
MAX_DEPTH: Final = 32
"""Levels of arrays and objects; bodies of the contract have at most four."""
_NUL: Final = "\0"
_SUSPICIOUS: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|NaN|Infinity|[0-9]{99}|[eE]\+?[0-9]{2}")
"""Found in every body with an invalid value, and in few others."""
_TOO_DEEP: Final = f"the body is nested deeper than {MAX_DEPTH} levels"


class UnreadableBodyError(ValueError):
    """A body is not JSON in UTF-8; the message says why."""


def parse(body: bytes) -> Any:
    """Return the value of a JSON text; raise `UnreadableBodyError` if it can be read in several ways, or in none.

    A byte order mark is ignored, as RFC 8259 allows.
    """
    try:
        text = body.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError:
        raise UnreadableBodyError("the body is not UTF-8") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise UnreadableBodyError(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise UnreadableBodyError(_TOO_DEEP) from None
    if _is_too_deep(value):
        raise UnreadableBodyError(_TOO_DEEP)
    return value


def invalid_values(body: bytes, value: Any) -> list[dict[str, str]]:
    """Return an error for each number that is not finite and each text, or name, that cannot be stored."""
    if not _SUSPICIOUS.search(body):
        return []
    return [
        {"pointer": _encodable(json_pointer(path)).replace(_NUL, ""), "detail": reason}
        for path, each in _walk(value)
        for reason in _reasons(each)
    ]


def _reasons(value: Any) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield "must be a finite number within the range of a double"
    texts = [value] if isinstance(value, str) else value if isinstance(value, dict) else ()
    for text in texts:
        reason = _unstorable_reason(text)
        if reason is not None:
            yield reason


def _unstorable_reason(text: str) -> str | None:
    if _NUL in text:
        return "contains the character U+0000, which cannot be stored; remove it"
    return None if _encodable(text) == text else "contains half of a surrogate pair; send the whole character"


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _is_too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        groups = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for group in groups for item in group if isinstance(item, dict | list)]
    return bool(level)


def _walk(value: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield every value with its path."""
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while pending:
        path, each = pending.pop()
        yield path, each
        if isinstance(each, dict):
            pending += [((*path, name), item) for name, item in reversed(each.items())]
        elif isinstance(each, list):
            pending += [((*path, index), item) for index, item in reversed([*enumerate(each)])]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UnreadableBodyError(f"the name {_encodable(name)[:64]!r} occurs twice in one object; send it once")
        found[name] = value
    return found


def _integer(text: str) -> int | float:
    """Return an integer, or infinity if no double can hold it; Python limits the digits of integers."""
    value = float(text)
    return int(text) if math.isfinite(value) else value


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
