"""The time for shells; pure code is given `now` as an argument."""

import os
from datetime import UTC, datetime, timedelta
from typing import Final

SKEW: Final = timedelta(seconds=float(os.environ.get("HOLDFAST_CLOCK_SKEW_SECONDS", "0")))
"""How far this process's clock is wrong on purpose: a fault for tests to inject, as `HOLDFAST_CRASHPOINT` is one."""


def now() -> datetime:
    """This machine's time, in UTC."""
    return datetime.now(UTC) + SKEW
