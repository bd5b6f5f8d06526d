"""`holdfast up` and `holdfast down`: one supervisor for each root directory, in this process or in a detached one."""

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
"""Hidden option of `up`: file descriptor to which a detached supervisor writes its events."""


def supervise(root: Root, options: Options, emit: Tell) -> int:
    """Run the supervisor until it is stopped; return the exit code. A `Fault` is reported as an event, never raised."""
    try:
        root.make()
        # A supervisor that is stopping releases the lock as its last step, so wait for it.
        with root.hold(16.0 if root.load().get("state") == "stopping" else 1.0) as acquired:
            if not acquired:
                emit(Event("running"))
                return 0
            return _supervise(root, options, _logged(root, emit))
    except Fault as fault:
        emit(Event("failed", text=str(fault), code=fault.code))
        return fault.code


def _supervise(root: Root, options: Options, emit: Tell) -> int:
    threading.Thread(target=jars.sweep, daemon=True).start()
    # Services of a killed supervisor have outdated settings and occupy the ports that this one needs.
    if orphans := services.left_behind(root):
        emit(Event("note", text=f"ending {len(orphans)} processes of a supervisor that was killed"))
        processes.end(orphans, signal.SIGTERM, 5.0)
    supervisor = Supervisor(root, plan.make(root, options, emit), emit, limits=options.limits)

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        if supervisor.stop_asked.is_set():
            supervisor.hurry.set()
        supervisor.stop_asked.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    return supervisor.run()


def _logged(root: Root, emit: Tell) -> Tell:
    """Return an `emit` that also appends each event to `logs/supervisor.log`, for `holdfast logs supervisor`."""

    def log_and_emit(event: Event) -> None:
        if event.kind != "jars":
            with contextlib.suppress(OSError), root.log("supervisor").open("a") as log:
                log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {event.encode()}\n")
        emit(event)

    return log_and_emit


def foreground(root: Root, options: Options) -> int:
    """Run the supervisor in this process until Ctrl-C; return the exit code."""
    printer, already_running = show.Teller(root), False

    def emit(event: Event) -> None:
        nonlocal already_running
        already_running = already_running or event.kind == "running"
        printer(event)
        if event.kind == "up":
            show.addresses(root)
            printer(Event("note", text="press Ctrl-C to stop"))

    code = supervise(root, options, emit)
    return _wait_for_other(root, printer) if already_running else code


def detached(root: Root, arguments: list[str]) -> int:
    """Start a supervisor in a session of its own, print its events, and return the exit code when all is ready.

    `arguments` are the options of `up` for the supervisor's command line.
    """
    printer = show.Teller(root)
    try:
        root.make()
        log = root.log("supervisor").open("ab")
    except Fault as fault:
        printer(Event("failed", text=str(fault), code=fault.code))
        return fault.code
    read_end, write_end = os.pipe()
    with log:
        argv = [sys.executable, "-m", "infrastructure.local", "up", *arguments, REPORT, str(write_end)]
        environment = {**os.environ, "HOLDFAST_ROOT": str(root.path), **services.search_path()}
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=root.path,
            pass_fds=[write_end],
            start_new_session=True,
        )
    os.close(write_end)
    try:
        with os.fdopen(read_end) as lines:
            for line in lines:
                event = Event.decode(line)
                printer(event)
                if event.kind == "running":
                    return _wait_for_other(root, printer)
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
        printer.close()
    last_lines = " / ".join(tail(root.log("supervisor"), 3))
    message = f"the supervisor ended before all was ready: run `holdfast up` again (its log ends: {last_lines})"
    printer(Event("failed", text=message))
    return 1


def _wait_for_other(root: Root, printer: Tell, patience: float = 300.0) -> int:
    """Wait until the shop that another supervisor runs is ready, and print its addresses; return the exit code."""
    end = time.monotonic() + patience
    while root.held() and root.load().get("state") != "ready" and time.monotonic() < end:
        time.sleep(0.2)
    if root.load().get("state") != "ready":
        why = root.load().get("failure", "it was stopped")
        message = f"the shop that was starting here did not become ready ({why}): run `holdfast up` again"
        printer(Event("failed", text=message))
        return 1
    show.addresses(root)
    return 0


def report(root: Root, options: Options, descriptor: int) -> int:
    """Run the detached supervisor: write events to the pipe until all is ready or its reader is gone."""
    pipe = os.fdopen(descriptor, "w", buffering=1)
    os.set_inheritable(descriptor, False)  # noqa: FBT003

    def emit(event: Event) -> None:
        with contextlib.suppress(OSError, ValueError):
            pipe.write(event.encode() + "\n")
        if event.kind in ("up", "failed", "running"):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()

    return supervise(root, options, emit)


def down(root: Root) -> int:
    """Stop all programs of this root, including those of a killed supervisor; return 0 even if nothing runs."""
    printer = show.Teller(root)
    began = time.monotonic()
    if root.held():
        pid = root.holder() or int(root.load().get("supervisor") or 0)
        with contextlib.suppress(psutil.Error):
            supervisor = [psutil.Process(pid)] if pid else []
            processes.tell(supervisor, signal.SIGTERM)
            processes.tell(supervisor, signal.SIGCONT)
        while root.held() and time.monotonic() - began < 16.0:  # noqa: PLR2004 - seconds; a supervisor needs less
            time.sleep(0.05)
        if root.held() and pid:
            processes.kill(psutil.Process(pid))
    elif not (root.path / "stack.json").exists():
        printer(Event("note", text="no shop runs here"))
        return 0
    processes.end(services.left_behind(root), signal.SIGTERM, 8.0)
    for kind in (Kafka, Postgres, Redis):
        with contextlib.suppress(Fault):
            # Neither port nor password is needed to recognise a server's processes.
            processes.end(kind(root, 0, Secrets("", "", "")).left(), kind.stop_signal, 8.0)
    state = root.load()
    if state:
        state.update(state="stopped", supervisor=0, services={})
        with contextlib.suppress(Fault):
            root.save(state)
    printer(Event("down", seconds=time.monotonic() - began))
    return 0
