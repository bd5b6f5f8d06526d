"""Watchdog of one program: starts or adopts its process, probes it, and restarts it when it ends or hangs.

Each program has a thread of its own, so that a slow or frozen program never delays the others.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Protocol

import psutil

from infrastructure.local import processes
from infrastructure.local.errors import PortInUse, StackError, convert_os_error
from infrastructure.local.events import Event
from infrastructure.local.servers.external import without_password
from infrastructure.local.servers.probes import Health, port_owner
from infrastructure.local.supervision.health_tracker import HealthTracker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infrastructure.local.events import EventSink
    from infrastructure.local.state import Root
    from infrastructure.process.fork_server import ForkedProcess

PROBE_INTERVAL_SECONDS = 2.0
"""Seconds between two probes of a program that has been ready."""
RESTART_DELAYS = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0)
"""Seconds to wait before a restart, by the number of crashes in a row."""
FAILED_AFTER_CRASHES = 5
"""Crashes in a row after which a program is shown as failed; restarts go on."""


class Program(Protocol):  # implemented by `Server`, which describes the members, and by `WorkerProcess`
    """Program that a watchdog can run."""

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
    def start(self, log: Path) -> subprocess.Popen[bytes] | ForkedProcess: ...  # noqa: D102
    @property
    def extra_stop_seconds(self) -> float: ...  # noqa: D102
    def after_stop(self) -> None: ...  # noqa: D102
    def health(self) -> Health: ...  # noqa: D102
    def find_processes(self) -> list[psutil.Process]: ...  # noqa: D102
    def url(self) -> str: ...  # noqa: D102


class Watchdog(threading.Thread):
    """Watchdog thread of one program. `state` is the state that `holdfast status` prints."""

    def __init__(self, program: Program, emit: EventSink, on_change: Callable[[], None]) -> None:
        super().__init__(name=program.name, daemon=True)
        self.program, self.emit, self.on_change = program, emit, on_change
        self.state, self.pid, self.restarts, self.failures = "starting", 0, 0, 0
        self._published = ("starting", -1)
        """State and pid at the last call of `on_change`."""
        self.since = time.time()
        """Time of that call: since when the process is in its state."""
        self.last_error: StackError | None = None
        """Reason why the last start failed or the last process ended."""
        self.became_ready = threading.Event()
        self.stop_requested = threading.Event()
        self._start_lock = threading.Lock()
        """Held from the check of `stop_requested` until the new process is recorded: none starts after a stop."""
        self._process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | ForkedProcess | None = None

    def run(self) -> None:
        """Start the program, and restart it whenever it ends, until `stop_requested` is set."""
        while not self.stop_requested.is_set():
            started = time.monotonic()
            try:
                reason: StackError = StackError(self._run_process(started))
            except StackError as fault:
                reason = fault
            except Exception as error:  # noqa: BLE001 - a watchdog must survive every error
                reason = StackError(f"{self.program.name}: {type(error).__name__}: {error}")
            if self.stop_requested.is_set():
                return
            self.failures += 1
            self.restarts += 1
            self.last_error, self.pid = reason, 0
            self._set_state("failed" if self.failures >= FAILED_AFTER_CRASHES else "restarting")
            self.emit(Event("lost", name=self.program.name, text=str(reason), done=self.failures))
            self.stop_requested.wait(RESTART_DELAYS[min(self.failures, len(RESTART_DELAYS)) - 1])

    def stop(self, timeout: float, hurry: threading.Event) -> None:
        """Send the program its stop signal, wait up to `timeout` seconds or until `hurry` is set, then kill it."""
        self.stop_requested.set()
        with self._start_lock:
            # `find_processes` also finds a setup step (initdb) that runs at this moment.
            found = {p.pid: p for p in (self._process, *self.program.find_processes()) if p is not None}
        patience = timeout + self.program.extra_stop_seconds
        processes.terminate(found.values(), self.program.stop_signal, patience, hurry)
        self._reap()
        self.program.after_stop()
        self.state = "stopped"

    def _run_process(self, started: float) -> str:
        """Run one process of the program to its end; return the reason of the end."""
        how = "reused" if self._adopt() else "started"
        if how == "started":
            self._start()
        if (process := self._process) is None:
            return "stopped before it was started"
        self.pid = process.pid
        tracker, announced = HealthTracker(time.monotonic()), False
        while not self.stop_requested.is_set():
            if not processes.is_alive(process):
                return self._exit_reason()
            health, now = self.program.health(), time.monotonic()
            if reason := tracker.record(health, now):
                return self._kill(reason)
            if health is Health.READY and not announced:
                if not processes.is_listening(process, self.program.port):
                    raise PortInUse(self._kill(f"cannot use its port: {self._port_conflict()}"))
                self.emit(
                    Event(
                        "ready",
                        self.name,
                        without_password(self.name, self.program.url()),
                        how,
                        now - started,
                        self.pid,
                    )
                )
                self.became_ready.set()
                announced = True
            if tracker.is_stable(now):
                self.failures = 0
            # After a crash the state stays `restarting` or `failed` until the program is ready again.
            if tracker.has_been_ready or self.state == "starting":
                self._set_state(tracker.state)
            processes.wait_for_end(process, PROBE_INTERVAL_SECONDS if tracker.has_been_ready else 0.1)
        return "stopped"

    def _set_state(self, state: str) -> None:
        if (state, self.pid) != self._published:
            self.state, self._published, self.since = state, (state, self.pid), time.time()
            self.on_change()

    def _adopt(self) -> bool:
        """Adopt a process of an earlier supervisor if it is ready; terminate all other processes of the program."""
        self._process = self._child = None
        left = self.program.find_processes()
        if self.program.adoptable and left:
            # A server has one root process; other matches (a setup step, a forked child) belong to it or are useless.
            for process in left:
                if self.program.health() is Health.READY and processes.is_alive(process):
                    self._process = process
                    return True
        processes.terminate(left, self.program.stop_signal, 5.0)
        return False

    def _start(self) -> None:
        self.program.prepare()
        log = self.program.root.log_file(self.program.name)
        try:
            with self._start_lock:
                if self.stop_requested.is_set():
                    return
                self._child = self.program.start(log)
                self._process = psutil.Process(self._child.pid)
        except psutil.NoSuchProcess:
            raise StackError(self._exit_reason()) from None
        except OSError as error:
            raise convert_os_error(error, self.program.cwd) from error

    def _port_conflict(self) -> str:
        port = self.program.port
        return f"port {port} has since been taken by {port_owner(port)}; run `holdfast up` again to choose another"

    def _kill(self, reason: str) -> str:
        """Kill the process at once (a frozen one ignores SIGTERM); return `reason` with the program's name."""
        assert self._process is not None
        processes.kill(self._process)
        self._reap()
        return f"{self.program.name} {reason}"

    def _exit_reason(self) -> str:
        status = self._reap()
        if status is None:
            return f"{self.program.name} ended"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{self.program.name} {how}"

    def _reap(self) -> int | None:
        """Reap the dead child process, so that it leaves no zombie; return its exit status if known."""
        if self._child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(5.0)
        return None
