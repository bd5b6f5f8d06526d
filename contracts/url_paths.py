"""Paths of URLs: the only place where an id or a product code becomes a segment of a path, and back (RFC 3986).

Ids and codes may contain every printable ASCII character, `/`, `%`, `?` and `#` included. A path in canonical form has
each segment encoded by `encode_segment`. Two paths name the same resource if their canonical forms are equal.
"""

import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DOT_SEGMENTS: Final = {".": "%2E", "..": "%2E%2E"}
"""Values that would be resolved as relative references if they were not encoded, and their encoded forms."""
DOT_SEGMENTS: Final = frozenset(_DOT_SEGMENTS)
"""Values that cannot be relied on in a path: browsers and proxies remove them even when they are encoded."""


def encode_segment(value: str) -> str:
    """Return a value as one segment of a path: every character except letters, digits and `-._~` is encoded."""
    return _DOT_SEGMENTS.get(value) or quote(value, safe="")


def decode_segment(segment: str) -> str:
    """Return the value of a segment, decoded once; raise `ValueError` if it is not percent-encoded UTF-8."""
    if not segment.isascii():
        raise ValueError("a path is ASCII; percent-encode other characters as UTF-8")
    if _BAD_ESCAPE.search(segment):
        raise ValueError("a % in a path must be followed by two hexadecimal digits; encode a % itself as %25")
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise ValueError("the percent-encoded bytes of a path must be UTF-8") from None


def canonical_path(path: str) -> str:
    """Return an absolute path with each segment decoded and encoded once; raise `ValueError` if one is malformed."""
    return "/".join(encode_segment(decode_segment(segment)) for segment in path.split("/"))
