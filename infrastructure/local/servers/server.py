"""Base class of the local servers (Kafka, PostgreSQL, Redis) that the supervisor runs.

A server class knows how to prepare the data directory, which command starts the server, how to probe it, and how to
recognise its processes.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from infrastructure.local import processes
from infrastructure.local.errors import StackError, Unsupported, convert_os_error, convert_output
from infrastructure.local.servers.probes import Health
from infrastructure.process.environment import child_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psutil

    from infrastructure.local.state import Root, Secrets


def packaged_file(package: str, relative_path: str) -> Path | None:
    """Return the path of a file in an installed package, without importing it (an import would have side effects)."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / relative_path).exists():
            return file
    return None


def package_missing(name: str, package: str) -> Unsupported:
    """Return the error for a server whose package is not installed."""
    return Unsupported(
        f"{name} is not installed: install the package {package} (`make up` does),"
        " or name an external server in the environment"
    )


def server_environment(own: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a server or a setup step, with its `own` variables."""
    return child_environment(own or {}, secrets=(), libpq=False)


def run_setup_step(
    argv: Sequence[str | Path], where: Path, stdin: str = "", environment: Mapping[str, str] | None = None
) -> None:
    """Run a setup command and wait for it.

    If it fails, raise the error that its output reports, else a `StackError` with the output.
    """
    done = subprocess.run(
        [str(a) for a in argv],
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=server_environment(environment),
        start_new_session=True,
    )
    if done.returncode:
        output = done.stdout + done.stderr
        last_words = " ".join(output.split())[-400:]
        program = next((Path(a).name for a in argv if str(a).startswith("/")), str(argv[0]))
        raise convert_output(output, where) or StackError(f"{program} failed: {last_words}")


class Server:
    """Server on a port of the loopback address, with its data in `root/<name>`."""

    name: ClassVar[str]
    stop_signal: ClassVar[int] = signal.SIGTERM
    adoptable = True
    """True: a process that a dead supervisor left is adopted, since a restart would cut its clients' connections."""

    def __init__(self, root: Root, port: int, secrets: Secrets) -> None:
        self.root, self.port, self.secrets = root, port, secrets
        self.data_dir = root.path / self.name
        self.cwd = self.data_dir
        self.metrics: str | None = None

    def prepare(self) -> None:
        """Prepare the data directory for a start. Call before `argv`; may take long. Raises `StackError`."""
        try:
            self.data_dir.mkdir(mode=0o700, exist_ok=True)
            self._prepare()
        except OSError as error:
            raise convert_os_error(error, self.data_dir) from error

    def _prepare(self) -> None: ...

    def argv(self) -> list[str]:
        """Return the command that starts the server."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the command: no secret, and no variable of another program."""
        return server_environment()

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """Start the server's process. Call `prepare` first. Raises `OSError` or `StackError`."""
        return processes.start(self.argv(), env=self.environment(), cwd=self.cwd, output=log)

    @property
    def extra_stop_seconds(self) -> float:
        """Seconds that the server may need beyond the usual time for its end."""
        return 0.0

    def after_stop(self) -> None:
        """Do what remains after the process has ended on request."""

    def health(self) -> Health:
        """Probe the server in its own protocol."""
        return Health.READY if self.is_answering() else Health.NO_ANSWER

    def is_answering(self) -> bool:
        """Return whether the server answers a request now."""
        raise NotImplementedError

    def find_processes(self) -> list[psutil.Process]:
        """Return the running processes of this server, including those of an earlier supervisor."""
        return processes.find_by_command(self._is_own_process)

    def _is_own_process(self, argv: Sequence[str]) -> bool:
        raise NotImplementedError

    def url(self) -> str:
        """Return the address for clients on this machine."""
        raise NotImplementedError
