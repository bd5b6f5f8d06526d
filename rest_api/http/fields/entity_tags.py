"""Entity tags and the conditions on them: `ETag`, `If-Match`, `If-None-Match` (RFC 9110, sections 8.8.3 and 13.1)."""

import re
from typing import Final

ANY: Final = "*"
_TAG: Final = re.compile(r'[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|$)')
"""An entity tag as a member of a list. Unlike a quoted string it has no escapes, and it may contain commas."""
_WEAK: Final = "W/"


def entity_tags(value: str) -> frozenset[str]:
    """Return the entity tags of a list, each with its quotes and its `W/`. Malformed members are ignored."""
    tags, position = set(), 0
    while position < len(value):
        found = _TAG.match(value, position)
        if found is not None:
            tags.add(found[1])
            position = found.end()
        else:
            position = value.find(",", position) + 1 or len(value)
    return frozenset(tags)


def weakly_matches(value: str, etag: str | None) -> bool:
    """Return True if `If-None-Match: value` lists the tag of an existing representation, weak or not, or is `*`."""
    if value.strip() == ANY:
        return True
    return etag is not None and etag.removeprefix(_WEAK) in {tag.removeprefix(_WEAK) for tag in entity_tags(value)}


def strongly_matches(value: str, etag: str | None) -> bool:
    """Return True if `If-Match: value` lists the strong tag of an existing representation, or is `*`."""
    if value.strip() == ANY:
        return True
    return etag is not None and not etag.startswith(_WEAK) and etag in entity_tags(value)
