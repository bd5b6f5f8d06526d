"""What can go wrong on a machine, each with an exit code and one sentence that says what to do.

| exit code | meaning |
|---|---|
| 0 | done; also: already running, a taken port that could be exchanged for a free one |
| 1 | a check failed, or a part did not become ready |
| 2 | wrong use |
| 3 | a port that was asked for is taken |
| 4 | a downloaded jar is not the one the lock names |
| 5 | no network, or the registry does not answer |
| 6 | the disk is full |
| 7 | no right to write |
| 8 | an external server does not answer |
| 9 | this machine lacks something (a package, user namespaces for root) |
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Fault(Exception):
    """An expected fault; `str()` is the sentence for the user, `code` the exit code."""

    code = 1


class WrongUse(Fault):
    """The command line asks for something that makes no sense."""

    code = 2


class PortTaken(Fault):
    """A port that was asked for by name belongs to another program."""

    code = 3


class DamagedJar(Fault):
    """The registry delivers something else than the lock names."""

    code = 4


class NoNetwork(Fault):
    """A file is missing and cannot be fetched."""

    code = 5


class DiskFull(Fault):
    """There is no room left for what must be written."""

    code = 6


class NoRight(Fault):
    """The user may not write where the stack must."""

    code = 7


class NoAnswer(Fault):
    """An external server, given by its address, does not answer."""

    code = 8


class Unsupported(Fault):
    """This machine or environment lacks something that only its owner can add."""

    code = 9


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_SAYS_FULL = ("No space left on device", "File too large", "File size limit exceeded", "Disk quota exceeded")
_SAYS_FORBIDDEN = ("Permission denied", "Read-only file system")


def disk_full(where: Path | str) -> DiskFull:
    """The fault for a full disk at `where`."""
    return DiskFull(f"the disk is full at {where}: make room there, then run `holdfast up` again")


def no_right(where: Path | str) -> NoRight:
    """The fault for a place that may not be written."""
    return NoRight(
        f"no right to write to {where}: change its owner, or set HOLDFAST_ROOT (state) or M2_REPO (jars)"
        " to a directory of yours"
    )


def explain(error: OSError, where: Path | str) -> Fault:
    """The fault behind an error of the operating system that concerns the path `where`."""
    if error.errno in _FULL:
        return disk_full(where)
    if error.errno in _FORBIDDEN:
        return no_right(error.filename or where)
    return Fault(f"{where}: {error.strerror or error}")


def explain_output(text: str, where: Path | str) -> Fault | None:
    """The fault that a program's own words tell of, None when they tell of none we know."""
    if any(sign in text for sign in _SAYS_FULL):
        return disk_full(where)
    if any(sign in text for sign in _SAYS_FORBIDDEN):
        return no_right(where)
    return None
