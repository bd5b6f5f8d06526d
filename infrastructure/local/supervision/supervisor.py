"""Supervisor of all programs of one root directory: starts them together, records their state, stops them in order.

All programs start at the same moment: the services load their code while the JVM boots, and they wait for Kafka,
PostgreSQL and Redis by themselves. Only the catalogue is loaded in a separate step, once for each database.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from contracts.envelope import rfc3339
from infrastructure.local import processes
from infrastructure.local.errors import DiskFull, StackError, convert_os_error
from infrastructure.local.events import Event
from infrastructure.local.servers import external
from infrastructure.local.supervision import limits as limit_settings
from infrastructure.local.supervision import option_differences, services, startup_plan
from infrastructure.local.supervision.watchdog import FAILED_AFTER_CRASHES, Watchdog
from infrastructure.process.environment import child_environment
from infrastructure.process.fork_server import ForkServer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from infrastructure.local.events import EventSink
    from infrastructure.local.state import Root
    from infrastructure.local.supervision.startup_plan import StartupPlan

    Monitor = Watchdog | external.ExternalServerMonitor

START_LIMIT_SECONDS = 120.0
"""Seconds that services have to become ready once Kafka, PostgreSQL and Redis are ready."""
MIN_FREE_BYTES = 200 << 20
"""Bytes of free disk space required at start: enough for a new database and the first segments of Kafka's log."""
MAX_LOG_BYTES = 16 << 20
"""Bytes; a larger log file is moved to `<name>.log.1`."""


class Supervisor:
    """Supervisor of the programs of a plan. `run` calls `emit` with each event, always from one thread."""

    def __init__(self, root: Root, plan: StartupPlan, emit: EventSink, *, limits: bool) -> None:
        self.root, self.plan, self._emit = root, plan, emit
        self.stop_requested = threading.Event()
        self.skip_grace_period = threading.Event()
        """Set by a second signal: kill programs instead of waiting for them to end."""
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._save_lock = threading.Lock()
        self.servers: list[Monitor] = [Watchdog(server, self._events.put, self.save) for server in plan.servers]
        self.servers += [
            external.ExternalServerMonitor(n, a, self._events.put, self.save) for n, a in plan.external.items()
        ]
        self.workers: list[Monitor] = [Watchdog(worker, self._events.put, self.save) for worker in plan.workers]
        self._fork_server: ForkServer | None = None
        self._seeding: StackError | bool = not plan.seed
        """True once the catalogue is loaded (or need not be), a `StackError` if loading failed."""
        self._state: dict[str, Any] = {
            "version": 1,
            "supervisor": os.getpid(),
            "state": "starting",
            "ports": {**root.load().get("ports", {}), **plan.ports},
            "http": plan.http,
            **plan.addresses,
            "limits": "on" if limits else "off",
            "partitions": plan.partitions,
            "prefix": os.environ.get("HOLDFAST_PREFIX", ""),
            "limit_settings": limit_settings.limits_set(os.environ),
            "settings": option_differences.setting_hashes(os.environ, root.secrets().signing),
            "seeded": root.load().get("seeded"),
        }

    def run(self) -> int:
        """Start all programs, run until `stop_requested` is set, stop all programs; return the exit code."""
        started, code = time.monotonic(), 0
        try:
            self._require_disk_space()
            self.root.save(self._state)
            self._use_fork_server()
            for monitor in self._monitors():
                monitor.start()
            if self.plan.seed:
                threading.Thread(target=self._seed, daemon=True).start()
            if self._wait_ready():
                self._state["state"] = "ready"
                self.save()
                self._emit(Event("up", seconds=time.monotonic() - started))
                self._watch()
        except StackError as error:
            code = error.code
            self._state["failure"] = str(error)
            self._emit(Event("failed", text=str(error), code=code))
        finally:
            self._stop()
        return code

    def _use_fork_server(self) -> None:
        """Let the workers be forked from one process that imports their modules while the servers start.

        Only on Linux: macOS forbids some of its libraries in a process that was forked.
        """
        if sys.platform != "linux" or not self.plan.workers:
            return
        modules = sorted({f"{worker.service_type.module}.__main__" for worker in self.plan.workers})
        environment = child_environment(services.python_path(), ())
        self._fork_server = ForkServer([*services.LATE_IMPORTS, *modules], environment)
        try:
            self._fork_server.warm()
        except OSError as error:
            raise convert_os_error(error, self.root.path) from error
        for worker in self.plan.workers:
            worker.fork_server = self._fork_server

    def save(self) -> None:
        """Record addresses and states in `stack.json`, for other processes; the supervisor does not depend on it."""
        with self._save_lock:
            self._state["services"] = {monitor.name: self._status_entry(monitor) for monitor in self._monitors()}
            # A full disk must not stop running programs; readers see old states until there is space again.
            with contextlib.suppress(StackError):
                self.root.save(self._state)

    def _monitors(self) -> list[Monitor]:
        return [*self.workers, *self.servers]

    @staticmethod
    def _status_entry(monitor: Monitor) -> dict[str, Any]:
        metrics = monitor.program.metrics if isinstance(monitor, Watchdog) else None
        entry: dict[str, Any] = {
            "state": monitor.state,
            "pid": monitor.pid,
            "restarts": monitor.restarts,
            "metrics": metrics,
            "address": external.without_password(monitor.name, _address(monitor)),
            "since": rfc3339(datetime.fromtimestamp(monitor.since, UTC)),
        }
        return entry if isinstance(monitor, Watchdog) else {**entry, "external": True}

    def _require_disk_space(self) -> None:
        try:
            free = shutil.disk_usage(self.root.path).free
        except OSError as error:
            raise convert_os_error(error, self.root.path) from error
        if free < MIN_FREE_BYTES:
            raise DiskFull(
                f"the disk is full at {self.root.path} ({free >> 20} MiB free, {MIN_FREE_BYTES >> 20} needed):"
                " make room there, then run `holdfast up` again"
            )

    def _wait_ready(self) -> bool:
        """Wait until all programs are ready and return True; return False if a stop was requested.

        Raises the `StackError` of a program that will not become ready.
        """
        infra_since: float | None = None
        while not self.stop_requested.is_set():
            self._forward_events(0.05)
            if isinstance(self._seeding, StackError):
                raise self._seeding
            waiting = [monitor for monitor in self._monitors() if not monitor.became_ready.is_set()]
            if not waiting and self._seeding is True:
                return True
            for monitor in waiting:
                # Crashes of a service count only once its servers are ready.
                hopeless = monitor.failures >= FAILED_AFTER_CRASHES and (
                    monitor in self.servers or infra_since is not None
                )
                if monitor.last_error and (monitor.last_error.code != 1 or hopeless):
                    raise self._add_log_excerpt(monitor.name, monitor.last_error)
            if infra_since is None and not any(monitor in waiting for monitor in self.servers):
                infra_since = time.monotonic()
                for monitor in self.workers:
                    monitor.failures = 0
            if infra_since is not None and waiting and time.monotonic() - infra_since > START_LIMIT_SECONDS:
                late = StackError(f"{waiting[0].name} is not ready after {START_LIMIT_SECONDS:.0f} s")
                raise self._add_log_excerpt(waiting[0].name, late)
        return False

    def _watch(self) -> None:
        """Forward events, rotate logs, and reap orphans if this process is pid 1, until a stop is requested."""
        checked = time.monotonic()
        while not self.stop_requested.is_set():
            self._forward_events(0.5)
            if time.monotonic() - checked > 15:  # noqa: PLR2004 - seconds between checks, which cost almost nothing
                checked = time.monotonic()
                for log in (self.root.path / "logs").glob("*.log"):
                    with contextlib.suppress(OSError):
                        rotate_log(log)
                if os.getpid() == 1:
                    self._reap_orphans()

    def _reap_orphans(self) -> None:
        import psutil

        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error, ChildProcessError):
                if child.status() == psutil.STATUS_ZOMBIE and child.pid not in {
                    monitor.pid for monitor in self._monitors()
                }:
                    os.waitpid(child.pid, os.WNOHANG)

    def _forward_events(self, timeout: float) -> None:
        """Forward the queued events of the watchdogs from this thread; wait up to `timeout` seconds for the first."""
        with contextlib.suppress(queue.Empty):
            self._emit(self._events.get(timeout=timeout))
            while True:
                self._emit(self._events.get_nowait())

    def _add_log_excerpt(self, name: str, error: StackError) -> StackError:
        """Return a `StackError` whose message ends with the last lines of the program's log, which name the cause."""
        if error.code != 1:
            return error
        lines = last_lines(self.root.log_file(name), 8)
        excerpt = "".join(f"\n  {line}" for line in lines)
        return StackError(f"{error}; see `holdfast logs {name}`" + (f", which ends with:{excerpt}" if excerpt else ""))

    def _seed(self) -> None:
        """Load the shipped catalogue with retries; sets `_seeding` to the result."""
        postgres = next(monitor for monitor in self.servers if monitor.name == "postgres")
        while not postgres.became_ready.wait(0.1):
            if self.stop_requested.is_set():
                return
        kind, settings = services.ServiceType("seed", services.SEED_MODULE), self.plan.workers[0].settings
        seeder = services.WorkerProcess(self.root, kind, "seed", 0, settings)
        argv = [*seeder.argv()[:-1], "seed"]
        for pause in (0.5, 1.0, 2.0, 4.0, 0.0):
            try:
                seeder.prepare()
                with self.root.log_file("seed").open("ab") as out:
                    done = subprocess.run(
                        argv,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                        cwd=seeder.cwd,
                        env=seeder.environment(),
                        check=False,
                        start_new_session=True,
                    )
            except (OSError, StackError) as error:
                self._seeding = error if isinstance(error, StackError) else convert_os_error(error, self.root.path)
                return
            if done.returncode == 0:
                self._state["seeded"] = startup_plan.catalogue_database(self.plan)
                self._seeding = True
                self.save()
                self._events.put(Event("note", text="the catalogue is loaded"))
                return
            if self.stop_requested.wait(pause):
                return
        self._seeding = self._add_log_excerpt("seed", StackError("the catalogue could not be loaded"))

    def _stop(self) -> None:
        """Stop the edge, then the workers, then the servers; kill what has not ended in time.

        Takes less than 15 s, and once up to 30 s more for Kafka's cache.
        """
        started = time.monotonic()
        self.stop_requested.set()
        self._state["state"] = "stopping"
        self.save()
        edges = [monitor for monitor in self.workers if isinstance(monitor, Watchdog) and monitor.name == "edge"]
        others = [monitor for monitor in self.workers if monitor not in edges]
        stopping_edges = threading.Thread(target=self._stop_all, args=(edges, 9.0))
        stopping_edges.start()
        stopping_edges.join(4.0)
        self._stop_all(others, 9.0 - (time.monotonic() - started))
        stopping_edges.join()
        processes.terminate(services.find_worker_processes(self.root), signal.SIGTERM, 0.5)
        if any(monitor.program.extra_stop_seconds for monitor in self.servers if isinstance(monitor, Watchdog)):
            self._emit(Event("note", text="Kafka writes a cache, once, that halves the time of its next start"))
        self._stop_all(self.servers, 4.0)
        if self._fork_server is not None:
            self._fork_server.close()
        self._state |= {"state": "stopped", "supervisor": 0}
        self.save()
        self._emit(Event("down", seconds=time.monotonic() - started))

    def _stop_all(self, programs: Iterable[Monitor], timeout: float) -> None:
        arguments = (max(timeout, 1.0), self.skip_grace_period)
        threads = [threading.Thread(target=monitor.stop, args=arguments) for monitor in programs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _address(monitor: Monitor) -> str:
    return monitor.program.url() if isinstance(monitor, Watchdog) else monitor.address


def last_lines(log: Path, lines: int) -> list[str]:
    """Return the last non-blank lines of a log; empty if the log cannot be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - (1 << 16)))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]


def rotate_log(log: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Copy a log that is longer than `max_bytes` to `<name>.log.1` and truncate it.

    The writer keeps its file open: because it appends, it goes on at the beginning of the truncated file.
    """
    if log.stat().st_size > max_bytes:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)
