"""Violation of an invariant."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Violation:
    """Violation of an invariant, with the ids, shoppers and products to look for in the history."""

    invariant: str
    detail: str
    words: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the violation as JSON values."""
        return {"invariant": self.invariant, "detail": self.detail}
