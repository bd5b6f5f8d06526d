"""What a check finds: an invariant that does not hold, and where to look."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """An invariant that does not hold, with the ids, shoppers and products to look for in the history."""

    invariant: str
    detail: str
    words: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"invariant": self.invariant, "detail": self.detail}
