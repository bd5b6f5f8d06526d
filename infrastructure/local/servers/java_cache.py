"""Cache of the classes that a Java program loads, so that it starts in half the time and with half the CPU.

Java 25 writes the cache when a program ends by itself (JEP 514), from what it loaded and compiled while it ran. It is
valid for exactly one Java, class path and set of options, so the name of its file contains their hash. The cache is
never needed: without it, or with one that is damaged, Java starts as usual.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_VERSION = 25
"""The first Java that writes a cache in one step."""
WRITE_SECONDS = 15.0
"""Time that a program may take for its end if it writes the cache."""
MAX_ATTEMPTS = 2
"""Attempts to write a cache. On a machine that is too slow for it, further ones would only delay each stop."""
UNUSED_DAYS = 30
"""Caches of other versions that are older than this are removed."""


class JavaCache:
    """Cache of one command: `command` is the binary and the options, up to the name of the main class."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self._command, self._folder, self._name = tuple(command), folder, name
        self._partial: Path | None = None

    @property
    def file(self) -> Path:
        """The file of the cache."""
        binary = Path(self._command[0]).stat()
        facts = (*self._command, str(binary.st_size), str(binary.st_mtime_ns))
        digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
        return self._folder / f"{self._name}-{digest}.aot"

    @property
    def is_writing(self) -> bool:
        """True if the program that was started last writes the cache when it ends."""
        return self._partial is not None

    def options(self) -> list[str]:
        """Return the options for the next start: to use the cache, to write it, or none if that is impossible."""
        self._discard()
        try:
            if not _is_supported(Path(self._command[0])):
                return []
            if self.file.exists():
                os.utime(self.file)
                return [f"-XX:AOTCache={self.file}", "-Xlog:aot*=off"]
            self._folder.mkdir(parents=True, exist_ok=True)
            attempts = self.file.with_suffix(".attempts")
            made = attempts.stat().st_size if attempts.exists() else 0
            if made >= MAX_ATTEMPTS:
                return []
            with attempts.open("a") as mark:
                mark.write(".")
            self._partial = self.file.with_suffix(f".{secrets.token_hex(4)}.part")
            self._partial.touch()
        except OSError:
            self._partial = None
            return []
        return [f"-XX:AOTCacheOutput={self._partial}", "-Xlog:aot*=off"]

    def keep(self) -> None:
        """Keep the cache that the program has written, if Java accepts it. Call this after the end of the program."""
        partial = self._partial
        if partial is None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            binary, *options = self._command
            check = [binary, *options, f"-XX:AOTCache={partial}", "-XX:AOTMode=on", "-version"]
            accepted = subprocess.run(check, capture_output=True, timeout=10.0, check=False).returncode == 0
            if accepted and partial.stat().st_size:
                partial.replace(self.file)
            self._remove_unused()
        self._discard()

    def _discard(self) -> None:
        partial, self._partial = self._partial, None
        for left in (partial, Path(f"{partial}.config")) if partial else ():
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)

    def _remove_unused(self) -> None:
        oldest = time.time() - UNUSED_DAYS * 86_400
        for other in self._folder.glob(f"{self._name}-*"):
            if other != self.file and other.stat().st_mtime < oldest:
                other.unlink(missing_ok=True)


def _is_supported(binary: Path) -> bool:
    """Return whether the Java of this binary is new enough, by the file `release` of its distribution."""
    for line in (binary.parents[1] / "release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "JAVA_VERSION":
            return int(value.strip('"').partition(".")[0]) >= FIRST_VERSION
    return False
