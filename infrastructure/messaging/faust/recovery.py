"""Recovery of tables by position: offsets of a changelog without a record count as recovered too.

Faust ends a recovery when it has applied the record before the end of each changelog. That offset may belong to the
marker of a transaction, or to a record that cannot be read: then the record never comes.
"""

from typing import Any

from faust.types import TP


def count_as_recovered(app: Any, partition: TP, first: int | None, end: int) -> None:
    """Count the offsets of a changelog from `first` to `end` (exclusive) as recovered, unless records before are not.

    `first` is `None` if there is no record before. Call it again later if records are still on their way to the table.
    """
    recovery = app.tables.recovery
    offsets = recovery.active_offsets
    if partition not in recovery.active_tps:
        return
    recovered = offsets[partition]
    if recovered is None or recovered >= end - 1:
        return
    if first is not None and recovered < first - 1:
        return  # Faust's queue has records before this range
    offsets[partition] = end - 1
    if recovery.in_recovery and not recovery.need_recovery():
        recovery.flush_buffers()
        recovery._set_recovery_ended()  # noqa: SLF001 - as Faust does when the last record has been applied
        recovery.signal_recovery_end.set()
