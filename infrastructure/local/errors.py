"""Expected errors of the local stack: each has an exit code and a one-sentence message that says what to do.

| exit code | meaning |
|---|---|
| 0 | done; also: the shop was already running, or a port in use was replaced with a free one |
| 1 | a check failed, or a server or service did not become ready |
| 2 | wrong use |
| 3 | a port that was asked for is in use |
| 4 | a downloaded jar does not match the lock file |
| 5 | no network, or the registry does not answer |
| 6 | the disk is full |
| 7 | no permission to write |
| 8 | an external server does not answer |
| 9 | this machine lacks a requirement (a package, user namespaces for root) |
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Fault(Exception):
    """An expected error; `str()` is the message for the user, `code` the exit code of the command."""

    code = 1


class WrongUse(Fault):
    """Invalid command-line arguments or settings."""

    code = 2


class PortTaken(Fault):
    """A port that the user asked for is in use by another program."""

    code = 3


class DamagedJar(Fault):
    """A downloaded jar whose checksum is not the one in the lock file."""

    code = 4


class NoNetwork(Fault):
    """A missing file that cannot be downloaded."""

    code = 5


class DiskFull(Fault):
    """A full disk, or an exhausted quota or file-size limit."""

    code = 6


class NoRight(Fault):
    """A path that the stack must write and the user may not."""

    code = 7


class NoAnswer(Fault):
    """An external server, named by its address, that does not answer."""

    code = 8


class Unsupported(Fault):
    """A requirement that this machine lacks and only its owner can add."""

    code = 9


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL_MESSAGES = ("No space left on device", "File too large", "File size limit exceeded", "Disk quota exceeded")
_FORBIDDEN_MESSAGES = ("Permission denied", "Read-only file system")


def disk_full(where: Path | str) -> DiskFull:
    """Return the error for a full disk at `where`."""
    return DiskFull(f"the disk is full at {where}: make room there, then run `holdfast up` again")


def no_right(where: Path | str) -> NoRight:
    """Return the error for a path that the user may not write."""
    return NoRight(
        f"no permission to write to {where}: change its owner, or set HOLDFAST_ROOT (state) or M2_REPO (jars)"
        " to a directory you can write to"
    )


def explain(error: OSError, where: Path | str) -> Fault:
    """Return the expected error that corresponds to an operating-system error at the path `where`."""
    if error.errno in _FULL:
        return disk_full(where)
    if error.errno in _FORBIDDEN:
        return no_right(error.filename or where)
    return Fault(f"{where}: {error.strerror or error}")


def explain_output(text: str, where: Path | str) -> Fault | None:
    """Return the expected error that a program's output reports, `None` if the output names no known cause."""
    if any(message in text for message in _FULL_MESSAGES):
        return disk_full(where)
    if any(message in text for message in _FORBIDDEN_MESSAGES):
        return no_right(where)
    return None
