"""`holdfast up` and `holdfast down`: one supervisor for each root, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psutil

from infrastructure.local import jars, plan, processes, services, show
from infrastructure.local.errors import Fault
from infrastructure.local.events import Event
from infrastructure.local.kafka import Kafka
from infrastructure.local.postgres import Postgres
from infrastructure.local.redis import Redis
from infrastructure.local.state import Secrets
from infrastructure.local.supervisor import Supervisor, tail

if TYPE_CHECKING:
    from types import FrameType

    from infrastructure.local.events import Tell
    from infrastructure.local.plan import Options
    from infrastructure.local.state import Root

REPORT = "--report-to"
"""Hidden option of `up`: the file descriptor that a detached supervisor tells its events to."""


def supervise(root: Root, options: Options, tell: Tell) -> int:
    """Be the supervisor until told to stop; returns the exit code. Never raises a Fault."""
    try:
        root.make()
        # One that is stopping is waited for; its last step is to let go of the lock.
        with root.hold(16.0 if root.load().get("state") == "stopping" else 1.0) as mine:
            if not mine:
                tell(Event("running"))
                return 0
            return _supervise(root, options, _logged(root, tell))
    except Fault as fault:
        tell(Event("failed", text=str(fault), code=fault.code))
        return fault.code


def _supervise(root: Root, options: Options, tell: Tell) -> int:
    threading.Thread(target=jars.sweep, daemon=True).start()
    # Services that a killed supervisor left: they have yesterday's settings and hold today's ports.
    if left := services.left_behind(root):
        tell(Event("note", text=f"ending {len(left)} processes that a killed supervisor left"))
        processes.end(left, signal.SIGTERM, 5.0)
    supervisor = Supervisor(root, plan.make(root, options, tell), tell, limits=options.limits)

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        if supervisor.stop_asked.is_set():
            supervisor.hurry.set()
        supervisor.stop_asked.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    return supervisor.run()


def _logged(root: Root, tell: Tell) -> Tell:
    """Keep a copy of everything in `logs/supervisor.log`, for `holdfast logs supervisor`."""

    def both(event: Event) -> None:
        if event.kind != "jars":
            with contextlib.suppress(OSError), root.log("supervisor").open("a") as log:
                log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {event.encode()}\n")
        tell(event)

    return both


def foreground(root: Root, options: Options) -> int:
    """Run until Ctrl-C."""
    teller, others = show.Teller(root), False

    def tell(event: Event) -> None:
        nonlocal others
        others = others or event.kind == "running"
        teller(event)
        if event.kind == "up":
            show.addresses(root)
            teller(Event("note", text="Ctrl-C stops it"))

    code = supervise(root, options, tell)
    return _wait_for_other(root, teller) if others else code


def detached(root: Root, words: list[str]) -> int:
    """Start a supervisor in a session of its own, show what it tells, return when all is ready.

    `words` are the options of `up` to repeat on its command line.
    """
    teller = show.Teller(root)
    try:
        root.make()
        log = root.log("supervisor").open("ab")
    except Fault as fault:
        teller(Event("failed", text=str(fault), code=fault.code))
        return fault.code
    reading, writing = os.pipe()
    with log:
        argv = [sys.executable, "-m", "infrastructure.local", "up", *words, REPORT, str(writing)]
        environment = {**os.environ, "HOLDFAST_ROOT": str(root.path), **services.search_path()}
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=root.path,
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    try:
        with os.fdopen(reading) as lines:
            for line in lines:
                event = Event.decode(line)
                teller(event)
                if event.kind == "running":
                    return _wait_for_other(root, teller)
                if event.kind == "up":
                    show.addresses(root)
                    return 0
                if event.kind == "failed":
                    child.wait(20.0)
                    return event.code
    except KeyboardInterrupt:
        child.terminate()
        child.wait(20.0)
        return 130
    finally:
        teller.close()
    said = " / ".join(tail(root.log("supervisor"), 3))
    teller(Event("failed", text=f"the supervisor ended before all was ready: run `holdfast up` again ({said})"))
    return 1


def _wait_for_other(root: Root, teller: Tell, patience: float = 300.0) -> int:
    """The shop runs already; when it is only starting, wait until it is ready too."""
    end = time.monotonic() + patience
    while root.held() and root.load().get("state") != "ready" and time.monotonic() < end:
        time.sleep(0.2)
    if root.load().get("state") != "ready":
        why = root.load().get("failure", "it was stopped")
        teller(
            Event("failed", text=f"the shop that was starting here did not get ready ({why}): run `holdfast up` again")
        )
        return 1
    show.addresses(root)
    return 0


def report(root: Root, options: Options, descriptor: int) -> int:
    """Be the detached supervisor: tell events to a pipe as long as somebody reads it."""
    pipe = os.fdopen(descriptor, "w", buffering=1)
    os.set_inheritable(descriptor, False)  # noqa: FBT003

    def tell(event: Event) -> None:
        with contextlib.suppress(OSError, ValueError):
            pipe.write(event.encode() + "\n")
        if event.kind in ("up", "failed", "running"):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()

    return supervise(root, options, tell)


def down(root: Root) -> int:
    """Stop everything of this root, also what a killed supervisor left; nothing to stop is fine."""
    teller = show.Teller(root)
    began = time.monotonic()
    if root.held():
        pid = root.holder() or int(root.load().get("supervisor") or 0)
        with contextlib.suppress(psutil.Error):
            boss = [psutil.Process(pid)] if pid else []
            processes.tell(boss, signal.SIGTERM)
            processes.tell(boss, signal.SIGCONT)
        while root.held() and time.monotonic() - began < 16.0:  # noqa: PLR2004 - seconds; it needs less
            time.sleep(0.05)
        if root.held() and pid:
            processes.kill(psutil.Process(pid))
    elif not (root.path / "stack.json").exists():
        teller(Event("note", text="no shop runs here"))
        return 0
    processes.end(services.left_behind(root), signal.SIGTERM, 8.0)
    for kind in (Kafka, Postgres, Redis):
        with contextlib.suppress(Fault):
            # Neither a port nor a password is needed to know our own.
            processes.end(kind(root, 0, Secrets("", "", "")).left(), kind.stop_signal, 8.0)
    state = root.load()
    if state:
        state.update(state="stopped", supervisor=0, services={})
        with contextlib.suppress(Fault):
            root.save(state)
    teller(Event("down", seconds=time.monotonic() - began))
    return 0
