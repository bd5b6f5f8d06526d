"""The limits that the edge keeps to, as `holdfast status` prints them: what it was told, else its defaults.

Nothing here may import a service, so the defaults stand here again; a test holds them against the edge's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "HOLDFAST_LIMIT_"


@dataclass(frozen=True)
class Limit:
    """One limit: its default, and what it counts."""

    default: int
    words: str
    always: bool = False
    """Whether it holds also with the limits off."""


LIMITS: Final = {
    f"{PREFIX}CHANGES": Limit(100, "changing requests or frames a minute and user"),
    f"{PREFIX}OTHERS": Limit(600, "other requests or frames a minute and user"),
    f"{PREFIX}ANONYMOUS": Limit(300, "requests without a user a minute and address"),
    f"{PREFIX}UNANSWERED": Limit(64, "unanswered requests a user"),
    f"{PREFIX}SOCKETS": Limit(5, "sockets a user"),
    f"{PREFIX}UNDER_WAY": Limit(
        1024, "requests under way that an edge always has room for; else a second's worth", always=True
    ),
    f"{PREFIX}ADDRESS_SOCKETS": Limit(200, "sockets an address"),
}


def told(environ: Mapping[str, str]) -> dict[str, str]:
    """What an environment says of limits. Case does not count: the edge's settings do not look at it either."""
    return {name.upper(): value for name, value in environ.items() if name.upper().startswith(PREFIX)}


def effective(settings: Mapping[str, str], *, lifted: bool) -> dict[str, int | str | None]:
    """Every limit with the value that holds, by its setting; None where it is lifted."""
    return {
        name: None if lifted and not limit.always else _number(settings.get(name, str(limit.default)))
        for name, limit in LIMITS.items()
    }


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
