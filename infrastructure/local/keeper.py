"""Keeps one program running: starts it or takes it over, watches it, starts it again.

One thread for each program, so that a slow or frozen one never delays the others.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Protocol

import psutil

from infrastructure.local import processes
from infrastructure.local.errors import Fault, PortTaken, explain
from infrastructure.local.events import Event
from infrastructure.local.judge import Judge
from infrastructure.local.outside import plain
from infrastructure.local.probes import Health, holder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infrastructure.local.events import Tell
    from infrastructure.local.state import Root

BEAT = 1.0
"""Seconds between two looks at a program that is up."""
PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0)
HOPELESS = 5
"""Crashes in a row after which it is shown as failed (and still tried)."""


class Program(Protocol):  # its members are described in `parts.Part`, which is one; so is `services.Service`
    """What a keeper needs to know."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def root(self) -> Root: ...  # noqa: D102
    @property
    def cwd(self) -> Path: ...  # noqa: D102
    @property
    def stop_signal(self) -> int: ...  # noqa: D102
    @property
    def adoptable(self) -> bool: ...  # noqa: D102
    @property
    def metrics(self) -> str | None: ...  # noqa: D102
    @property
    def port(self) -> int: ...  # noqa: D102
    def prepare(self) -> None: ...  # noqa: D102
    def argv(self) -> list[str]: ...  # noqa: D102
    def environment(self) -> dict[str, str]: ...  # noqa: D102
    def health(self) -> Health: ...  # noqa: D102
    def left(self) -> list[psutil.Process]: ...  # noqa: D102
    def url(self) -> str: ...  # noqa: D102


class Keeper(threading.Thread):
    """The life of one program. `state` is one of the words of `holdfast status`."""

    def __init__(self, program: Program, tell: Tell, changed: Callable[[], None]) -> None:
        super().__init__(name=program.name, daemon=True)
        self.program, self.tell, self.changed = program, tell, changed
        self.state, self.pid, self.restarts, self.failures = "starting", 0, 0, 0
        self._shown = ("starting", -1)
        self.fault: Fault | None = None
        """Why the last start or life ended."""
        self.was_ready = threading.Event()
        self.stopping = threading.Event()
        self._starting = threading.Lock()
        """Held from the last look at `stopping` to the new process: none is started behind a stop."""
        self._process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Start it, and start it again whenever it ends, until `stopping` is set."""
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                why: Fault = Fault(self._live(began))
            except Fault as fault:
                why = fault
            except Exception as error:  # noqa: BLE001 - a keeper must outlive everything
                why = Fault(f"{self.program.name}: {type(error).__name__}: {error}")
            if self.stopping.is_set():
                return
            self.failures += 1
            self.restarts += 1
            self.fault, self.pid = why, 0
            self._become("failed" if self.failures >= HOPELESS else "restarting")
            self.tell(Event("lost", name=self.program.name, text=str(why), done=self.failures))
            self.stopping.wait(PAUSES[min(self.failures, len(PAUSES)) - 1])

    def stop(self, patience: float) -> None:
        """Ask it to end, wait, then kill it."""
        self.stopping.set()
        with self._starting:
            # Also a preparing step (initdb) that is under way now.
            ours = {p.pid: p for p in (self._process, *self.program.left()) if p is not None}
        processes.end(ours.values(), self.program.stop_signal, patience)
        self._reap()
        self.state = "stopped"

    def _live(self, began: float) -> str:
        """One life; returns why it ended."""
        how = "reused" if self._adopt() else "started"
        if how == "started":
            self._start()
        if (process := self._process) is None:
            return "stopped before it was started"
        self.pid = process.pid
        judge, announced = Judge(time.monotonic()), False
        while not self.stopping.is_set():
            if not processes.alive(process):
                return self._ended()
            health, now = self.program.health(), time.monotonic()
            if why := judge.note(health, now):
                return self._put_away(why)
            if health is Health.READY and not announced:
                if not processes.listens(process, self.program.port):
                    raise PortTaken(self._put_away(f"cannot have its port: {self._thief()}"))
                self.tell(Event("ready", self.name, plain(self.name, self.program.url()), how, now - began, self.pid))
                self.was_ready.set()
                announced = True
            if judge.forgiven(now):
                self.failures = 0
            # Until it is ready again, one that crashed is shown as such.
            if judge.was_ready or self.state == "starting":
                self._become(judge.state)
            self.stopping.wait(BEAT if judge.was_ready else 0.1)
        return "stopped"

    def _become(self, state: str) -> None:
        if (state, self.pid) != self._shown:
            self.state, self._shown = state, (state, self.pid)
            self.changed()

    def _adopt(self) -> bool:
        """Take over what an earlier supervisor left and still answers; end the rest."""
        self._process = self._child = None
        left = self.program.left()
        if self.program.adoptable and left:
            # A tree has one root; the others (a preparing step, a forked child) belong to it or are no use.
            for process in left:
                if self.program.health() is Health.READY and processes.alive(process):
                    self._process = process
                    return True
        processes.end(left, self.program.stop_signal, 5.0)
        return False

    def _start(self) -> None:
        self.program.prepare()
        log = self.program.root.log(self.program.name)
        try:
            with log.open("ab") as out, self._starting:
                if self.stopping.is_set():
                    return
                self._child = subprocess.Popen(
                    self.program.argv(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd=self.program.cwd,
                    env={**os.environ, **self.program.environment()},
                    # Ctrl-C in the terminal reaches the supervisor only, which stops all in order.
                    start_new_session=True,
                )
                self._process = psutil.Process(self._child.pid)
        except OSError as error:
            raise explain(error, self.program.cwd) from error

    def _thief(self) -> str:
        port = self.program.port
        return f"port {port} was taken meanwhile by {holder(port)}; `holdfast up` again chooses another"

    def _put_away(self, why: str) -> str:
        """Kill a frozen program: it would not hear a polite signal."""
        assert self._process is not None
        processes.kill(self._process)
        self._reap()
        return f"{self.program.name} {why}"

    def _ended(self) -> str:
        status = self._reap()
        if status is None:
            return f"{self.program.name} ended"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{self.program.name} {how}"

    def _reap(self) -> int | None:
        """Collect our dead child, so that it does not stay a zombie; its exit status when known."""
        if self._child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(5.0)
        return None
