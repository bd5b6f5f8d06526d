"""Clock for code that does I/O. Pure code takes `now` as an argument."""

import os
from datetime import UTC, datetime, timedelta
from typing import Final

SKEW: Final = timedelta(seconds=float(os.environ.get("HOLDFAST_CLOCK_SKEW_SECONDS", "0")))
"""Error of this process's clock, set on purpose: a fault that tests inject, like `HOLDFAST_CRASHPOINT`."""


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC) + SKEW
