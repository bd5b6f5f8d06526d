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
from infrastructure.local.errors import Fault, explain
from infrastructure.local.events import Event
from infrastructure.local.outside import plain
from infrastructure.local.probes import Health

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infrastructure.local.events import Tell
    from infrastructure.local.state import Root

BEAT = 1.0
"""Seconds between two looks at a program that is up."""
FROZEN, MISSES = 6.0, 3
"""A program that was up and has been silent for so long and so often is killed."""
UNWELL = 30.0
"""One that answers that it is not well has this long to recover by itself."""
SLOW_START = 60.0
"""Seconds without any answer after which a start counts as hung."""
HEALTHY = 30.0
"""Seconds in good health after which earlier crashes are forgotten."""
PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0)
HOPELESS = 5
"""Crashes in a row after which it is shown as failed (and still tried)."""


class Program(Protocol):
    """What a keeper needs to know: a part and a service both are one."""

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> Root: ...
    @property
    def cwd(self) -> Path: ...
    @property
    def stop_signal(self) -> int: ...
    @property
    def adoptable(self) -> bool: ...
    @property
    def metrics(self) -> str | None: ...

    def prepare(self) -> None: ...
    def argv(self) -> list[str]: ...
    def environment(self) -> dict[str, str]: ...
    def health(self) -> Health: ...
    def left(self) -> list[psutil.Process]: ...
    def url(self) -> str: ...


class Keeper(threading.Thread):
    """The life of one program. `state` is one of the words of `holdfast status`."""

    def __init__(self, program: Program, tell: Tell, changed: Callable[[], None]) -> None:
        super().__init__(name=program.name, daemon=True)
        self.program, self.tell, self.changed = program, tell, changed
        self.state, self.pid, self.restarts, self.failures = "starting", 0, 0, 0
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
        if self.state != "restarting" and self.state != "failed":
            self._become("starting")
        heard = well = ready_since = None
        first, misses, announced = time.monotonic(), 0, False
        while not self.stopping.is_set():
            if not processes.alive(process):
                return self._ended()
            health, now = self.program.health(), time.monotonic()
            if health is Health.SILENT:
                misses += 1
                if heard is None and now - first > SLOW_START:
                    return self._put_away(f"did not answer within {SLOW_START:.0f} s of its start")
                if heard is not None and misses >= MISSES and now - heard > FROZEN:
                    return self._put_away(f"has not answered for {now - heard:.0f} s")
            else:
                heard, misses = now, 0
            if health in (Health.LIVE, Health.READY):
                well = now
            elif health is Health.SICK and now - (well or first) > (UNWELL if well else SLOW_START):
                return self._put_away(f"has been unwell for {now - (well or first):.0f} s")
            if health is Health.READY:
                if ready_since is None or self.state != "ready":
                    ready_since = now
                    self._become("ready")
                    if not announced:
                        self.tell(Event("ready", self.name, plain(self.name, self.program.url()), how, now - began, self.pid))
                        self.was_ready.set()
                        announced = True
                if now - ready_since > HEALTHY:
                    self.failures = 0
            elif ready_since is not None and self.state == "ready" and (health is not Health.SILENT or misses > 1):
                self._become("degraded")
            self.stopping.wait(BEAT if ready_since is not None else 0.1)
        return "stopped"

    def _become(self, state: str) -> None:
        if state != self.state or state in ("starting", "ready"):
            self.state = state
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
                self._child = subprocess.Popen(  # noqa: S603 - our own commands
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

    def _put_away(self, why: str) -> str:
        """Kill a frozen program: it would not hear a polite signal."""
        assert self._process is not None  # noqa: S101 - called while it lives
        processes.kill(self._process)
        self._reap()
        return f"{self.program.name} {why}"

    def _ended(self) -> str:
        status = self._reap()
        how = "ended" if status is None else f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{self.program.name} {how}"

    def _reap(self) -> int | None:
        """Collect our dead child, so that it does not stay a zombie; its exit status when known."""
        if self._child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(5.0)
        return None
