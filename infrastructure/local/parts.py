"""What Kafka, PostgreSQL and Redis have in common as programs that the supervisor can run.

A part knows how to prepare its directory, which command runs it, how to ask whether it answers, and
how to tell a process of its own from anybody else's.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from infrastructure.local import processes
from infrastructure.local.errors import Fault, Unsupported, explain, explain_output
from infrastructure.local.probes import Health

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psutil

    from infrastructure.local.state import Root, Secrets


def wheel(package: str, inside: str) -> Path | None:
    """A file of an installed package, found without importing it (an import would have side effects)."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / inside).exists():
            return file
    return None


def missing(what: str, package: str) -> Unsupported:
    """The fault for a server whose package is absent."""
    return Unsupported(
        f"{what} is not here: install the package {package} (`make up` does),"
        " or name a server of yours in the environment"
    )


def run(argv: Sequence[str | Path], where: Path, stdin: str = "", environment: Mapping[str, str] | None = None) -> None:
    """Run a preparing step; raises the fault its output tells of."""
    done = subprocess.run(
        [str(a) for a in argv],
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    if done.returncode:
        words = done.stdout + done.stderr
        last = " ".join(words.split())[-400:]
        program = next((Path(a).name for a in argv if str(a).startswith("/")), str(argv[0]))
        raise explain_output(words, where) or Fault(f"{program} failed: {last}")


class Part:
    """One server on a port of the loopback address, with its data in `root/<name>`."""

    name: ClassVar[str]
    stop_signal: ClassVar[int] = signal.SIGTERM
    adoptable = True
    """It holds data and connections: one that a dead supervisor left is taken over, not restarted."""

    def __init__(self, root: Root, port: int, secrets: Secrets) -> None:
        self.root, self.port, self.secrets = root, port, secrets
        self.folder = root.path / self.name
        self.cwd = self.folder
        self.metrics: str | None = None

    def prepare(self) -> None:
        """Make the directory ready for a start; everything slow is here. Raises a Fault."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._prepare()
        except OSError as error:
            raise explain(error, self.folder) from error

    def _prepare(self) -> None: ...

    def argv(self) -> list[str]:
        """The command to run."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What the command finds in its environment beside our own."""
        return {}

    def health(self) -> Health:
        """Asked in its own protocol."""
        return Health.READY if self.answers() else Health.SILENT

    def answers(self) -> bool:
        """Whether it takes a request now."""
        raise NotImplementedError

    def left(self) -> list[psutil.Process]:
        """Processes of this part that run now, whoever started them."""
        return processes.by_command(self._mine)

    def _mine(self, argv: Sequence[str]) -> bool:
        raise NotImplementedError

    def url(self) -> str:
        """How a client of this machine reaches it."""
        raise NotImplementedError
