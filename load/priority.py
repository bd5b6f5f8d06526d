"""Scheduling priority of a process that measures: real time where the system permits it, else a low nice value.

A driver needs little CPU time, but at its intended instants. An ordinary process waits for its turn behind the
processes that it measures, and then measures its own waiting.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

NICE_VALUE: Final = -10
REAL_TIME_PRIORITY: Final = 1


@contextmanager
def raised_priority(*, real_time: bool) -> Iterator[str]:
    """Raise the priority of this process as far as the system permits, and restore it on exit.

    Yield its description: `SCHED_FIFO 1` for real time, else `nice -10` or `nice 0`. Real time suits a process that
    mostly waits. A process that is always busy would keep others from a core, so it asks for a nice value only.
    """
    if real_time and sys.platform == "linux" and _set_real_time():
        try:
            yield f"SCHED_FIFO {REAL_TIME_PRIORITY}"
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(before, NICE_VALUE))
    try:
        yield f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def _set_real_time() -> bool:
    """Return True if this process, but none that it starts, now has real-time priority."""
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(0, policy, os.sched_param(REAL_TIME_PRIORITY))
    except OSError:  # not permitted, or unknown to a container's kernel
        return False
    return True
