"""The `holdfast` command as tests run it: from a directory of its own, with the environment they give it."""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import pytest

from infrastructure.local import cli

CHECKOUT = Path(__file__).resolve().parents[2]
BECOME_OTHERS = {"baskets", "bench", "chaos", "guests", "load", "prove", "shoppers"}
"""These go on as another program; called in here, they would take the tests with them."""


class Holdfast:
    """The command with a shop's environment, in a directory that has nothing to do with it.

    A context manager: leaving it kills the commands that are still running.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        self.environment = {
            **inherited,
            "PYTHONPATH": str(CHECKOUT),
            "HOLDFAST_ROOT": str(folder / "no-shop"),
            "NO_COLOR": "1",
            **environment,
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run as a process of its own."""
        child = subprocess.Popen(
            [sys.executable, "-m", "infrastructure.local", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(child)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._started:
            if child.poll() is None:
                child.kill()
            child.communicate()

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error; run in here when that can be, which is quicker."""
        if arguments[0] in BECOME_OTHERS:
            child = self.start(*arguments)
            answer, complaint = child.communicate(timeout=60)
            return child.returncode, answer.decode(), complaint.decode()
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
                patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["holdfast", *arguments])
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, write_through=True))
            with pytest.raises(SystemExit) as end:
                cli.main()
            out.seek(0)
            err.seek(0)
            return int(end.value.code or 0), out.read().decode(), err.read().decode()
