"""All programs of one root together: started at once, recorded, stopped in order.

Everything starts at the same moment: the services load their code while the JVM boots, and wait for
Kafka, PostgreSQL and Redis by themselves. Only the catalogue is loaded in a step of its own, once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

from infrastructure.local import limits as limit_settings
from infrastructure.local import outside, processes, services
from infrastructure.local import plan as plans
from infrastructure.local.errors import DiskFull, Fault, explain
from infrastructure.local.events import Event
from infrastructure.local.keeper import HOPELESS, Keeper

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from infrastructure.local.events import Tell
    from infrastructure.local.plan import Plan
    from infrastructure.local.state import Root

    Kept = Keeper | outside.Watch

START = 120.0
"""Seconds that services have to get ready once Kafka, PostgreSQL and Redis are."""
ROOM = 200 << 20
"""Bytes that must be free: a new database and the first segments of Kafka's log."""
LOG_LIMIT = 16 << 20
"""A log file past this size is moved to `<name>.log.1`."""


class Supervisor:
    """Runs a plan until it is told to stop. Events go to `tell`, from several threads, one at a time."""

    def __init__(self, root: Root, plan: Plan, tell: Tell, *, limits: bool) -> None:
        self.root, self.plan, self._tell = root, plan, tell
        self.stop_asked = threading.Event()
        self.hurry = threading.Event()
        """Set by a second signal: no more patience."""
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._saving = threading.Lock()
        self.parts: list[Kept] = [Keeper(part, self._events.put, self.save) for part in plan.parts]
        self.parts += [outside.Watch(n, a, self._events.put, self.save) for n, a in plan.outside.items()]
        self.workers: list[Kept] = [Keeper(worker, self._events.put, self.save) for worker in plan.workers]
        self._seeding: Fault | bool = not plan.seed
        """True when the catalogue is loaded, a fault when it cannot be."""
        self._state: dict[str, Any] = {
            "version": 1,
            "supervisor": os.getpid(),
            "state": "starting",
            "ports": {**root.load().get("ports", {}), **plan.ports},
            "http": plan.http,
            **plan.addresses,
            "limits": "on" if limits else "off",
            "partitions": plan.partitions,
            "limit_settings": limit_settings.told(os.environ),
            "seeded": root.load().get("seeded"),
        }

    def run(self) -> int:
        """Start all, watch until a stop is asked for, stop all; returns the exit code."""
        began, code = time.monotonic(), 0
        try:
            self._make_room()
            self.root.save(self._state)
            for kept in self._all():
                kept.start()
            if self.plan.seed:
                threading.Thread(target=self._seed, daemon=True).start()
            if self._wait_ready():
                self._state["state"] = "ready"
                self.save()
                self._tell(Event("up", seconds=time.monotonic() - began))
                self._watch()
        except Fault as fault:
            code = fault.code
            self._state["failure"] = str(fault)
            self._tell(Event("failed", text=str(fault), code=code))
        finally:
            self._stop()
        return code

    def save(self) -> None:
        """Record addresses and states; what is recorded is for readers, nothing here depends on it."""
        with self._saving:
            self._state["services"] = {kept.name: self._entry(kept) for kept in self._all()}
            # A full disk must not take down what runs; the readers see old states until there is room.
            with contextlib.suppress(Fault):
                self.root.save(self._state)

    def _all(self) -> list[Kept]:
        return [*self.workers, *self.parts]

    @staticmethod
    def _entry(kept: Kept) -> dict[str, Any]:
        metrics = kept.program.metrics if isinstance(kept, Keeper) else None
        entry: dict[str, Any] = {"state": kept.state, "pid": kept.pid, "restarts": kept.restarts, "metrics": metrics}
        return entry if isinstance(kept, Keeper) else {**entry, "external": True}

    def _make_room(self) -> None:
        try:
            free = shutil.disk_usage(self.root.path).free
        except OSError as error:
            raise explain(error, self.root.path) from error
        if free < ROOM:
            raise DiskFull(
                f"the disk is full at {self.root.path} ({free >> 20} MiB free, {ROOM >> 20} needed):"
                " make room there, then run `holdfast up` again"
            )

    def _wait_ready(self) -> bool:
        """Wait until all is ready: True; False when a stop was asked for. Raises what makes it hopeless."""
        infra_since: float | None = None
        while not self.stop_asked.is_set():
            self._pass_on(0.05)
            if isinstance(self._seeding, Fault):
                raise self._seeding
            waiting = [kept for kept in self._all() if not kept.was_ready.is_set()]
            if not waiting and self._seeding is True:
                return True
            for kept in waiting:
                # A service may stumble as long as its servers are not there.
                hopeless = kept.failures >= HOPELESS and (kept in self.parts or infra_since is not None)
                if kept.fault and (kept.fault.code != 1 or hopeless):
                    raise self._with_log(kept.name, kept.fault)
            if infra_since is None and not any(kept in waiting for kept in self.parts):
                infra_since = time.monotonic()
                for kept in self.workers:
                    kept.failures = 0
            if infra_since is not None and waiting and time.monotonic() - infra_since > START:
                late = Fault(f"{waiting[0].name} is not ready after {START:.0f} s")
                raise self._with_log(waiting[0].name, late)
        return False

    def _watch(self) -> None:
        """Nothing to do but pass on what happens, keep logs short, and reap orphans when we are pid 1."""
        looked = time.monotonic()
        while not self.stop_asked.is_set():
            self._pass_on(0.5)
            if time.monotonic() - looked > 15:  # noqa: PLR2004 - seconds; a look costs next to nothing
                looked = time.monotonic()
                for log in (self.root.path / "logs").glob("*.log"):
                    with contextlib.suppress(OSError):
                        shorten(log)
                if os.getpid() == 1:
                    self._reap_orphans()

    def _reap_orphans(self) -> None:
        import psutil

        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error, ChildProcessError):
                if child.status() == psutil.STATUS_ZOMBIE and child.pid not in {kept.pid for kept in self._all()}:
                    os.waitpid(child.pid, os.WNOHANG)

    def _pass_on(self, patience: float) -> None:
        """Tell what the keepers told, from this one thread."""
        with contextlib.suppress(queue.Empty):
            self._tell(self._events.get(timeout=patience))
            while True:
                self._tell(self._events.get_nowait())

    def _with_log(self, name: str, fault: Fault) -> Fault:
        """The same fault with the end of the log, where a service says why."""
        if fault.code != 1:
            return fault
        lines = tail(self.root.log(name), 8)
        said = "".join(f"\n  {line}" for line in lines)
        return Fault(f"{fault}; `holdfast logs {name}` has more" + (f", it ends:{said}" if said else ""))

    def _seed(self) -> None:
        """Load the shipped catalogue, once for each database; trying again while the service warms up."""
        postgres = next(kept for kept in self.parts if kept.name == "postgres")
        while not postgres.was_ready.wait(0.1):
            if self.stop_asked.is_set():
                return
        kind, settings = services.Kind("seed", services.SEEDER), self.plan.workers[0].settings
        seeder = services.Service(self.root, kind, "seed", 0, settings)
        argv = [*seeder.argv()[:-1], "seed"]
        for pause in (0.5, 1.0, 2.0, 4.0, 0.0):
            try:
                seeder.prepare()
                with self.root.log("seed").open("ab") as out:
                    environment = {**os.environ, **seeder.environment()}
                    done = subprocess.run(
                        argv,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                        cwd=seeder.cwd,
                        env=environment,
                        check=False,
                        start_new_session=True,
                    )
            except (OSError, Fault) as error:
                self._seeding = error if isinstance(error, Fault) else explain(error, self.root.path)
                return
            if done.returncode == 0:
                self._state["seeded"] = plans.seed_mark(self.plan)
                self._seeding = True
                self.save()
                self._events.put(Event("note", text="the catalogue is loaded"))
                return
            if self.stop_asked.wait(pause):
                return
        self._seeding = self._with_log("seed", Fault("the catalogue could not be loaded"))

    def _stop(self) -> None:
        """Edge first, then workers, then the servers they use; well under 15 s, then kill -9."""
        began = time.monotonic()
        self.stop_asked.set()
        self._state["state"] = "stopping"
        self.save()
        edges = [kept for kept in self.workers if isinstance(kept, Keeper) and kept.name == "edge"]
        others = [kept for kept in self.workers if kept not in edges]
        first = threading.Thread(target=self._end, args=(edges, 9.0))
        first.start()
        first.join(4.0)
        self._end(others, 9.0 - (time.monotonic() - began))
        first.join()
        processes.end(services.left_behind(self.root), signal.SIGTERM, 0.5)
        self._end(self.parts, 4.0)
        self._state |= {"state": "stopped", "supervisor": 0}
        self.save()
        self._tell(Event("down", seconds=time.monotonic() - began))

    def _end(self, some: Iterable[Kept], patience: float) -> None:
        patience = 0.2 if self.hurry.is_set() else max(patience, 1.0)
        threads = [threading.Thread(target=kept.stop, args=(patience,)) for kept in some]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def tail(log: Path, lines: int) -> list[str]:
    """The last lines of a log that have something on them."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - (1 << 16)))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]


def shorten(log: Path, limit: int = LOG_LIMIT) -> None:
    """Move a long log aside. Its writer goes on in the same file: it appends, so it starts at 0 again."""
    if log.stat().st_size > limit:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)
