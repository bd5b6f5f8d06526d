"""Lists and parameters in header fields (RFC 9110, section 5.6)."""

import re
from typing import Final

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PARTS: Final = {separator: re.compile(rf'(?:"(?:[^"\\]|\\.)*+(?:"|\\?$)|[^{separator}"])*+') for separator in ",;"}
"""Text up to the next separator. A quoted string may contain separators; one that does not end takes all the rest."""
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE: Final = re.compile(r"\\(.)")


def split(value: str, separator: str) -> list[str]:
    """Return the non-empty parts between separators (`,` or `;`), without the whitespace around them."""
    parts, position = [], 0
    while position <= len(value):
        found = _PARTS[separator].match(value, position)
        assert found is not None  # the pattern matches the empty text
        parts.append(found[0].strip(" \t"))
        position = found.end() + 1
    return [part for part in parts if part]


def parameter(text: str) -> tuple[str, str] | None:
    """Return the lower-case name and the value of `name`, `name=token` or `name="text"`; `None` if malformed."""
    name, has_value, value = (part.strip(" \t") for part in text.partition("="))
    if not TOKEN.fullmatch(name):
        return None
    if not has_value or TOKEN.fullmatch(value):
        return name.lower(), value
    quoted = _QUOTED.fullmatch(value)
    return None if quoted is None else (name.lower(), _ESCAPE.sub(r"\1", quoted[1]))
