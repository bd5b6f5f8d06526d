"""A sweep goes on while it finds full batches, with an end."""

import pytest

from infrastructure.storage import retention
from infrastructure.storage.retention import delete_in_batches


@pytest.mark.parametrize(("rows", "calls"), [(0, 1), (9, 1), (10, 2), (25, 3), (1000, 50)])
async def test_a_sweep_goes_on_until_less_than_a_batch_is_left(
    rows: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCHES", 50)
    left, made = rows, 0

    async def delete() -> int:
        nonlocal left, made
        deleted = min(left, 10)
        left, made = left - deleted, made + 1
        return deleted

    assert await delete_in_batches(delete, limit=10, pause=0) == rows - left
    assert made == calls
    assert left == max(0, rows - 500)
