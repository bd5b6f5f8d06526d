"""Media types: the one of a body (`Content-Type`), and the ones that a client accepts (`Accept`, RFC 9110, 12.5.1)."""

import re
from typing import Final

from rest_api.http.fields import lists

_QUALITY: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
HTML: Final = "text/html"


def parse(value: str) -> tuple[str, dict[str, str]]:
    """Return the media type or range in lower case, and its parameters; the first of duplicates counts."""
    name, *rest = lists.split(value, ";") or [""]
    parameters: dict[str, str] = {}
    for text in rest:
        found = lists.parameter(text)
        if found is not None:
            parameters.setdefault(*found)
    return name.lower(), parameters


def quality(accept: str, media_type: str) -> float:
    """Return the quality from 0 to 1 that `accept` gives a media type: that of the most specific range."""
    main_type = media_type.partition("/")[0]
    specificity = {"*/*": 0, f"{main_type}/*": 1, media_type: 2}
    best, found = -1, 0.0
    for member in lists.split(accept, ","):
        name, parameters = parse(member)
        weight = parameters.get("q", "1")
        if _QUALITY.fullmatch(weight) and specificity.get(name, -1) > best:
            best, found = specificity[name], float(weight)
    return found


def prefers_html(accept: str) -> bool:
    """Return True if a client would rather have HTML than JSON, as browsers do for the addresses of pages."""
    return quality(accept, HTML) > json_quality(accept)


def json_quality(accept: str) -> float:
    """Return the quality that a client gives to JSON, be it a problem document or not."""
    return max(quality(accept, JSON), quality(accept, PROBLEM))
