"""Reservations of ports that a shop of this user has chosen but does not listen on yet.

A port is chosen long before its server listens: a JVM starts in between, and on a new machine a download runs first.
Two shops that start together could choose the same ports, so each process keeps a file lock on every port it chose.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from infrastructure.local.servers import probes

_lock_descriptors: dict[int, int] = {}
"""Port → descriptor of the lock file that reserves it."""


def reserve_if_free(port: int) -> bool:
    """Reserve `port` unless a program listens on it or another shop has reserved it; return whether it was reserved."""
    return not probes.is_port_in_use(port) and reserve(port)


def reserve_free_port() -> int:
    """Reserve and return a free port that neither another shop nor this process has reserved."""
    while (port := probes.free_port()) in _lock_descriptors or not reserve_if_free(port):
        pass
    return port


def reserve(port: int) -> bool:
    """Reserve a port for the life of this process; return False if another shop of this user has reserved it."""
    if port in _lock_descriptors:
        return True
    folder = Path(tempfile.gettempdir(), f"holdfast-ports-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            return True
        descriptor = os.open(folder / str(port), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        # No lock can be stored: `reserve_if_free` still checks whether a program listens on the port.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _lock_descriptors[port] = descriptor
    return True
