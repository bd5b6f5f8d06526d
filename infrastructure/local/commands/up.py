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

from infrastructure.local import processes
from infrastructure.local.commands import output
from infrastructure.local.errors import OtherOptions, StackError
from infrastructure.local.events import Event
from infrastructure.local.servers import jars
from infrastructure.local.servers.kafka import Kafka
from infrastructure.local.servers.postgres import Postgres
from infrastructure.local.servers.redis import Redis
from infrastructure.local.state import Secrets, find_running, not_running
from infrastructure.local.supervision import option_differences, services, startup_plan
from infrastructure.local.supervision.supervisor import Supervisor, last_lines

if TYPE_CHECKING:
    from types import FrameType

    from infrastructure.local.events import EventSink
    from infrastructure.local.state import Root
    from infrastructure.local.supervision.startup_plan import UpOptions

MAX_STOP_SECONDS = 46.0
"""Seconds after which `down` kills a supervisor that does not end; it needs less."""
REPORT_OPTION = "--report-to"
"""Hidden option of `up`: file descriptor to which a detached supervisor writes its events."""


def run_supervisor(root: Root, options: UpOptions, emit: EventSink) -> int:
    """Run the supervisor until it is stopped; return the exit code. Report a `StackError` as an event; never raise."""
    try:
        root.create()
        # A supervisor that is stopping releases the lock as its last step, so wait for it.
        with root.acquire_lock(MAX_STOP_SECONDS if root.load().get("state") == "stopping" else 1.0) as acquired:
            if not acquired:
                emit(Event("running"))
                return 0
            return _run_supervisor(root, options, _with_event_log(root, emit))
    except StackError as fault:
        emit(Event("failed", text=str(fault), code=fault.code))
        return fault.code


def _run_supervisor(root: Root, options: UpOptions, emit: EventSink) -> int:
    threading.Thread(target=jars.remove_partial_downloads, daemon=True).start()
    # Services of a killed supervisor have outdated settings and occupy the ports that this one needs.
    if orphans := services.find_worker_processes(root):
        emit(Event("note", text=f"ending {len(orphans)} processes of a supervisor that was killed"))
        processes.terminate(orphans, signal.SIGTERM, 5.0)
    supervisor = Supervisor(root, startup_plan.make_plan(root, options, emit), emit, limits=options.limits)

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        if supervisor.stop_requested.is_set():
            supervisor.skip_grace_period.set()
        supervisor.stop_requested.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    return supervisor.run()


def _with_event_log(root: Root, emit: EventSink) -> EventSink:
    """Return an `emit` that also appends each event to `logs/supervisor.log`, for `holdfast logs supervisor`."""

    def log_and_emit(event: Event) -> None:
        if event.kind != "jars":
            with contextlib.suppress(OSError), root.log_file("supervisor").open("a") as log:
                log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {event.encode()}\n")
        emit(event)

    return log_and_emit


def run_foreground(root: Root, options: UpOptions) -> int:
    """Run the supervisor in this process until Ctrl-C; return the exit code."""
    printer, already_running = output.ProgressPrinter(root), False

    def emit(event: Event) -> None:
        nonlocal already_running
        already_running = already_running or event.kind == "running"
        printer(event)
        if event.kind == "up":
            output.print_addresses(root)
            printer(Event("note", text="press Ctrl-C to stop"))

    code = run_supervisor(root, options, emit)
    return _wait_for_other(root, options, printer) if already_running else code


def start_detached(root: Root, options: UpOptions, arguments: list[str]) -> int:
    """Start a supervisor in a session of its own, print its events, and return the exit code when all is ready.

    `arguments` are the `options` for the supervisor's command line.
    """
    printer = output.ProgressPrinter(root)
    try:
        root.create()
        log = root.log_file("supervisor").open("ab")
    except StackError as fault:
        printer(Event("failed", text=str(fault), code=fault.code))
        return fault.code
    read_end, write_end = os.pipe()
    with log:
        argv = [sys.executable, "-m", "infrastructure.local", "up", *arguments, REPORT_OPTION, str(write_end)]
        environment = {**os.environ, "HOLDFAST_ROOT": str(root.path), **services.python_path()}
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
                    return _wait_for_other(root, options, printer)
                if event.kind == "up":
                    output.print_addresses(root)
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
    excerpt = " / ".join(last_lines(root.log_file("supervisor"), 3))
    message = f"the supervisor ended before all was ready: run `holdfast up` again (its log ends: {excerpt})"
    printer(Event("failed", text=message))
    return 1


def _wait_for_other(root: Root, options: UpOptions, printer: EventSink, timeout: float = 300.0) -> int:
    """Wait until the shop that another supervisor runs is ready, and print its addresses; return the exit code.

    Options and settings that differ from those of the running shop are reported, and result in a code of their own.
    """
    end = time.monotonic() + timeout
    while root.has_supervisor() and root.load().get("state") != "ready" and time.monotonic() < end:
        time.sleep(0.2)
    if root.load().get("state") != "ready":
        reason = root.load().get("failure", "it was stopped")
        message = f"the shop that was starting here did not become ready ({reason}): run `holdfast up` again"
        printer(Event("failed", text=message))
        return 1
    output.print_addresses(root)
    stack = find_running(root)
    own = stack.environment() if stack else {}
    asked = option_differences.differences(options, os.environ, root.secrets().signing, root.load(), own)
    if asked:
        message = (
            f"the running shop was left as it is; not applied: {'; '.join(asked)}."
            " To apply, run `holdfast down`, then the same `holdfast up` again; no data is lost"
        )
        printer(Event("failed", text=message))
        return OtherOptions.code
    return 0


def run_reporting(root: Root, options: UpOptions, descriptor: int) -> int:
    """Run the detached supervisor: write events to the pipe until all is ready or its reader is gone."""
    pipe = os.fdopen(descriptor, "w", buffering=1)
    os.set_inheritable(descriptor, False)  # noqa: FBT003

    def emit(event: Event) -> None:
        with contextlib.suppress(OSError, ValueError):
            pipe.write(event.encode() + "\n")
        if event.kind in ("up", "failed", "running"):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()

    return run_supervisor(root, options, emit)


def down(root: Root) -> int:
    """Stop all programs of this root, including those of a killed supervisor; return 0 even if nothing runs."""
    printer = output.ProgressPrinter(root)
    started = time.monotonic()
    if root.has_supervisor():
        pid = root.supervisor_pid() or int(root.load().get("supervisor") or 0)
        with contextlib.suppress(psutil.Error):
            supervisor = [psutil.Process(pid)] if pid else []
            processes.send_signal(supervisor, signal.SIGTERM)
            processes.send_signal(supervisor, signal.SIGCONT)
        while root.has_supervisor() and time.monotonic() - started < MAX_STOP_SECONDS:
            time.sleep(0.05)
        if root.has_supervisor() and pid:
            processes.kill(psutil.Process(pid))
    elif not (root.path / "stack.json").exists():
        printer(Event("note", text=not_running(root)))
        return 0
    processes.terminate(services.find_worker_processes(root), signal.SIGTERM, 8.0)
    for kind in (Kafka, Postgres, Redis):
        with contextlib.suppress(StackError):
            # Neither port nor password is needed to recognise a server's processes.
            processes.terminate(kind(root, 0, Secrets.create()).find_processes(), kind.stop_signal, 8.0)
    state = root.load()
    if state:
        state.update(state="stopped", supervisor=0, services={})
        with contextlib.suppress(StackError):
            root.save(state)
    printer(Event("down", seconds=time.monotonic() - started))
    return 0
