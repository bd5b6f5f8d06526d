"""The time for shells; pure code is given `now` as an argument."""

from datetime import UTC, datetime


def now() -> datetime:
    """This machine's time, in UTC."""
    return datetime.now(UTC)
