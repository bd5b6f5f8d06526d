"""Limits of the edge as `holdfast status` prints them: the values that are set, else the edge's defaults.

This package may not import a service, so the defaults are repeated here; a test compares them with the edge's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "HOLDFAST_LIMIT_"


@dataclass(frozen=True)
class Limit:
    """A limit of the edge."""

    default: int
    description: str
    """Description of what the limit counts, as in the edge's settings."""
    always_applies: bool = False
    """True if the limit also applies with the limits off."""


LIMITS: Final = {
    f"{PREFIX}CHANGES": Limit(100, "requests or frames that change something, per minute and user"),
    f"{PREFIX}OTHERS": Limit(600, "other requests or frames, per minute and user"),
    f"{PREFIX}ANONYMOUS": Limit(300, "requests without a user, per minute and address"),
    f"{PREFIX}NETWORK_CHANGES": Limit(1000, "requests or frames that change something, per minute and network"),
    f"{PREFIX}NETWORK_OTHERS": Limit(6000, "other requests or frames, per minute and network"),
    f"{PREFIX}NETWORK_GUESTS": Limit(300, "new guests, per hour and network"),
    f"{PREFIX}UNANSWERED": Limit(64, "unanswered requests per user"),
    f"{PREFIX}SOCKETS": Limit(5, "sockets per user"),
    f"{PREFIX}UNDER_WAY": Limit(
        1024, "in-flight requests always admitted; beyond that, one second of recent throughput", always_applies=True
    ),
    f"{PREFIX}ADDRESS_SOCKETS": Limit(200, "sockets per address"),
    f"{PREFIX}ADDRESS_CONNECTIONS": Limit(
        256, "connections per address, sockets included, except those of trusted proxies"
    ),
}


def limits_set(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the limits that an environment sets, by upper-case name; names match in any case, as in the edge."""
    return {name.upper(): value for name, value in environ.items() if name.upper().startswith(PREFIX)}


def effective_limits(settings: Mapping[str, str], *, lifted: bool) -> dict[str, int | str | None]:
    """Return the effective value of every limit by the name of its setting; `None` for a lifted limit."""
    return {
        name: None if lifted and not limit.always_applies else _parse_number(settings.get(name, str(limit.default)))
        for name, limit in LIMITS.items()
    }


def _parse_number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
