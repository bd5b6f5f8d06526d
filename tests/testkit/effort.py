"""The number of random histories that a test explores: all of them, or a quarter in `make check`.

`make check` runs after every edit, so it sets `HOLDFAST_TEST_EFFORT=quick`. `make test` explores all of them. A test
that plants a bug, and an exhaustive test, take no notice of it: a smaller number could miss what they must find.
"""

import os
from typing import Final

QUICK: Final = os.environ.get("HOLDFAST_TEST_EFFORT") == "quick"


def histories(number: int) -> int:
    """Return `number`, or a quarter of it when the effort is quick."""
    return max(1, number // 4) if QUICK else number
