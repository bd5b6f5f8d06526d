"""Ports that another shop of this user has chosen but does not use yet.

Between choosing a port and listening there lies the start of a JVM, on a new machine even a download. Two
shops that start together would choose the same ports; so each holds a lock on those it chose, as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from infrastructure.local import probes

_held: dict[int, int] = {}
"""Port → the descriptor that holds its lock."""


def available(port: int) -> bool:
    """Whether nobody listens on the port and no other shop has chosen it; from now on it is ours."""
    return not probes.taken(port) and claim(port)


def free_port() -> int:
    """A free port that no other shop has chosen, nor this one for something else; from now on it is ours."""
    while (port := probes.free_port()) in _held or not available(port):
        pass
    return port


def claim(port: int) -> bool:
    """Choose a port; False when another shop of this user has it."""
    if port in _held:
        return True
    folder = Path(tempfile.gettempdir(), f"holdfast-ports-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            return True
        descriptor = os.open(folder / str(port), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        # Without a place for locks there is still the check whether somebody listens.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _held[port] = descriptor
    return True
