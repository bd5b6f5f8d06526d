"""Rows of a job queue in memory; they pass the suite of the real ones (`tests/integration/test_job_rows.py`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from infrastructure.storage.job_queue import NOW, LeasedRow, Row


def machine_time() -> datetime:
    return datetime.now(UTC)


@dataclass
class MemoryRow:
    """One row: its own columns, and those of the job."""

    key: str
    columns: dict[str, Any] = field(default_factory=dict)
    at: datetime | None = None
    lease: datetime | None = None
    attempts: int = 0


class MemoryRows:
    """Rows by key; `now` may be a test's own clock. `lost` says how often the next calls fail."""

    def __init__(self, now: Callable[[], datetime] = machine_time) -> None:
        self.now = now
        self.rows: dict[str, MemoryRow] = {}
        self.lost = 0
        self.looks = 0

    def add(self, *keys: str) -> None:
        """New rows that are due, the first first."""
        for number, key in enumerate(keys):
            self.rows[key] = MemoryRow(key, at=self.now() - timedelta(microseconds=len(keys) - number))

    def knock(self, key: str) -> None:
        """Have a row looked at, whatever it does."""
        self.rows[key].at = self.now()

    async def lease(self, limit: int, lease: timedelta) -> Sequence[LeasedRow]:
        """As `JobRows.lease`."""
        self._reach()
        self.looks += 1
        now = self.now()
        due = [row for row in self.rows.values() if row.at and row.at <= now and not (row.lease and row.lease > now)]
        taken = []
        for row in sorted(due, key=lambda each: each.at or now)[:limit]:
            row.lease, row.attempts = now + lease, row.attempts + 1
            taken.append(LeasedRow({"key": row.key, **row.columns}, row.key, row.attempts, row.at or now, row.lease))
        return taken

    async def finish(self, leased: LeasedRow, after: timedelta | None, *, attempts: int, columns: Row) -> bool:
        """As `Rows.finish`."""
        self._reach()
        row = self.rows[leased.key]
        if row.lease != leased.until:
            return False
        if row.at == leased.due:
            row.at = None if after is None else self.now() + after
        row.lease, row.attempts = None, attempts
        row.columns |= {name: self.now() if value is NOW else value for name, value in columns.items()}
        return True

    async def close(self) -> None:
        """Do nothing: there is no connection to return."""

    def _reach(self) -> None:
        if self.lost:
            self.lost -= 1
            raise TimeoutError("the rows can't be reached")
