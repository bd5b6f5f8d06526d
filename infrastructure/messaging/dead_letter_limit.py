"""The limit that keeps a bad deploy from dead-lettering a whole topic: docs/adr/0015-dead-letter-limit.md."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 60
MIN_RECORDS: Final = 20
"""Number of records in the window below which the limit does not apply: the share of so few is not meaningful."""


@dataclass(slots=True)
class _Second:
    """The records of one second of the window."""

    number: int
    seen: int = 0
    dead_lettered: int = 0


class DeadLetterLimit:
    """Counter of the records of one topic over a sliding minute, and of the dead letters among them.

    The limit is reached at `per_minute` dead letters, if they are also more than `share` of all records (0 to 1).
    `per_minute=0` switches it off. `clock` returns seconds.
    """

    def __init__(self, per_minute: int, share: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self.share = share
        self._clock = clock
        self._seconds: deque[_Second] = deque()

    @property
    def seen(self) -> int:
        """Number of records within the last minute."""
        self._forget()
        return sum(second.seen for second in self._seconds)

    @property
    def dead_lettered(self) -> int:
        """Number of dead letters within the last minute."""
        self._forget()
        return sum(second.dead_lettered for second in self._seconds)

    @property
    def reached(self) -> bool:
        """True if one more dead letter would exceed both the rate and the share."""
        if not self.per_minute:
            return False
        dead_letters = self.dead_lettered + 1
        records = max(self.seen, dead_letters)  # a record may be dead-lettered long after it was seen
        return dead_letters > self.per_minute and records >= MIN_RECORDS and dead_letters > self.share * records

    def count_seen(self, records: int) -> None:
        """Add records that were received. Call it before any of them is dead-lettered."""
        number = int(self._clock())
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number))
            self._forget()
        self._seconds[-1].seen += records

    def count_dead_letter(self) -> None:
        """Add one dead letter. Call it after it was stored."""
        self.count_seen(0)  # adds the current second, if it is missing
        self._seconds[-1].dead_lettered += 1

    def _forget(self) -> None:
        oldest = self._clock() - WINDOW_SECONDS
        while self._seconds and self._seconds[0].number <= oldest:
            self._seconds.popleft()
