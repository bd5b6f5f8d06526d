"""Expected errors of the local stack: each has an exit code and a one-sentence message that says what to do.

| exit code | meaning |
|---|---|
| 0 | done; also: the shop was already running as asked for, or a port in use was replaced with a free one |
| 1 | a check failed, or a server or service did not become ready |
| 2 | wrong use |
| 3 | a port that was asked for is in use |
| 4 | a downloaded jar does not match the lock file |
| 5 | no network, or the registry does not answer |
| 6 | the disk is full |
| 7 | no permission to write |
| 8 | an external server does not answer |
| 9 | this machine lacks a requirement (a package, user namespaces for root) |
| 10 | a shop is already running, with other options or settings than this `up` asks for |
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class StackError(Exception):
    """An expected error; `str()` is the message for the user, `code` the exit code of the command."""

    code = 1


class UsageError(StackError):
    """Invalid command-line arguments or settings."""

    code = 2


class PortInUse(StackError):
    """A port that the user asked for is in use by another program."""

    code = 3


class ChecksumMismatch(StackError):
    """A downloaded jar whose checksum is not the one in the lock file."""

    code = 4


class DownloadFailed(StackError):
    """A missing file that cannot be downloaded."""

    code = 5


class DiskFull(StackError):
    """A full disk, or an exhausted quota or file-size limit."""

    code = 6


class PermissionDenied(StackError):
    """A path that the stack must write and the user may not."""

    code = 7


class ServerUnavailable(StackError):
    """An external server, named by its address, that does not answer."""

    code = 8


class Unsupported(StackError):
    """A requirement that this machine lacks and only its owner can add."""

    code = 9


class OtherOptions(StackError):
    """A running shop with other options or settings than `up` asks for."""

    code = 10


_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PERMISSION_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS}
_DISK_FULL_MESSAGES = ("No space left on device", "File too large", "File size limit exceeded", "Disk quota exceeded")
_PERMISSION_MESSAGES = ("Permission denied", "Read-only file system")


def disk_full(where: Path | str) -> DiskFull:
    """Return the error for a full disk at `where`."""
    return DiskFull(f"the disk is full at {where}: make room there, then run `holdfast up` again")


def permission_denied(where: Path | str) -> PermissionDenied:
    """Return the error for a path that the user may not write."""
    return PermissionDenied(
        f"no permission to write to {where}: change its owner, or set HOLDFAST_ROOT (state) or M2_REPO (jars)"
        " to a directory you can write to"
    )


def convert_os_error(error: OSError, where: Path | str) -> StackError:
    """Return the expected error that corresponds to an operating-system error at the path `where`."""
    if error.errno in _DISK_FULL_ERRNOS:
        return disk_full(where)
    if error.errno in _PERMISSION_ERRNOS:
        return permission_denied(error.filename or where)
    return StackError(f"{where}: {error.strerror or error}")


def convert_output(text: str, where: Path | str) -> StackError | None:
    """Return the expected error that a program's output reports, `None` if the output names no known cause."""
    if any(message in text for message in _DISK_FULL_MESSAGES):
        return disk_full(where)
    if any(message in text for message in _PERMISSION_MESSAGES):
        return permission_denied(where)
    return None
