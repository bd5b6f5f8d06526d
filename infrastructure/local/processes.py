"""Search for processes by command line or environment, and operations on the ones found.

Recorded pids are not reliable: a supervisor killed between starting a process and recording its pid loses it, and a
recorded pid may belong to another program by now. Processes of a shop are therefore recognised by its root directory in
their command line or environment, which they keep for life.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path


HURRY_SECONDS = 0.2
"""Seconds that programs have for their end after a second Ctrl-C."""


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def find_by_command(test: Callable[[Sequence[str]], bool]) -> list[psutil.Process]:
    """Return the live processes, except this one, whose command line passes the test."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and test(process.cmdline()) and is_alive(process):
                found.append(process)
    return found


def find_by_environment(name: str, test: Callable[[str], bool]) -> list[psutil.Process]:
    """Return this user's live processes, except this one, whose environment variable `name` passes the test."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and test(process.environ().get(name, "")) and is_alive(process):
                found.append(process)
    return found


def find_by_title(test: Callable[[str], bool]) -> list[psutil.Process]:
    """Return the live processes, except this one, whose title (their command line as one text) passes the test."""
    return find_by_command(lambda argv: test(" ".join(argv).rstrip()))


def find_by_working_directory(folder: str) -> list[psutil.Process]:
    """Return the live processes with this working directory (PostgreSQL's children have their data directory)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd() == folder and is_alive(process):
                found.append(process)
    return found


def wait_for_end(process: psutil.Process, timeout: float) -> None:
    """Wait until the process ends, at most `timeout` seconds; without `pidfd` (only Linux has it) wait that long."""
    try:
        watched = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        time.sleep(timeout if is_alive(process) else 0.0)
        return
    try:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.poll(timeout * 1000)
    finally:
        os.close(watched)


def start(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with its output appended to a file.

    Ctrl-C in the terminal must reach only the supervisor, which stops all programs in order.
    """
    with output.open("ab") as out:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, env=env, start_new_session=True
        )


def process_tree(process: psutil.Process) -> list[psutil.Process]:
    """Return the process and all its descendants."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def is_listening(process: psutil.Process, port: int) -> bool:
    """Return whether the process or a descendant listens on the port; True if the system denies the information."""
    for member in process_tree(process):
        try:
            if any(socket.laddr and socket.laddr[1] == port for socket in member.net_connections("tcp")):
                return True
        except psutil.NoSuchProcess:
            continue
        except (psutil.Error, OSError):
            return True
    return False


def process_trees(pids: Iterable[int]) -> dict[int, list[psutil.Process]]:
    """Return each process with all its descendants, found in one scan of the machine; empty for one that is gone."""
    known: dict[int, psutil.Process] = {}
    children: dict[int, list[int]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            children.setdefault(process.ppid(), []).append(process.pid)
            known[process.pid] = process
    found: dict[int, list[psutil.Process]] = {}
    for pid in pids:
        members = [pid] if pid in known else []
        for member in members:  # the list grows during the loop
            members += children.get(member, [])
        found[pid] = [known[member] for member in members]
    return found


def resident_bytes(family: Iterable[psutil.Process]) -> int:
    """Return the resident bytes of the processes; shared pages count in each."""
    total = 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def proportional_bytes(family: Iterable[psutil.Process]) -> int | None:
    """Return the bytes of the processes with each shared page divided among its users (PSS); `None` if unknown.

    Only Linux knows it, and only for processes whose memory map this user may read.
    """
    total = 0
    for process in family:
        try:
            memory = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        except (psutil.Error, OSError):
            return None
        if not hasattr(memory, "pss"):
            return None
        total += memory.pss
    return total


def cpu_times(family: Iterable[psutil.Process]) -> dict[tuple[int, float], float]:
    """Return the CPU seconds that each process has used, by pid and creation time."""
    seconds = {}
    for process in family:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds[process.pid, process.create_time()] = times.user + times.system
    return seconds


def send_signal(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to the processes that are still alive."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def wait_until_gone(
    processes: Iterable[psutil.Process], timeout: float, hurry: threading.Event | None = None
) -> list[psutil.Process]:
    """Wait up to `timeout` seconds, or until `hurry` is set, for the processes to end; return those still alive.

    Zombies count as gone: in a container without an init process, which reaps no orphans, they stay indefinitely.
    """
    end = time.monotonic() + timeout
    left = [p for p in processes if is_alive(p)]
    while left and time.monotonic() < end and not (hurry and hurry.is_set()):
        time.sleep(0.02)
        left = [p for p in left if is_alive(p)]
    return left


def terminate(
    processes: Iterable[psutil.Process],
    number: int = signal.SIGTERM,
    timeout: float = 5.0,
    hurry: threading.Event | None = None,
) -> None:
    """Send the processes a signal, wait up to `timeout` seconds, then kill the remaining ones and their children.

    If `hurry` is set meanwhile, wait only a moment longer.
    """
    processes = list(processes)
    # A stopped process receives the signal only after SIGCONT.
    send_signal(processes, number)
    send_signal(processes, signal.SIGCONT)
    left = wait_until_gone(processes, timeout, hurry)
    for process in wait_until_gone(left, min(timeout, HURRY_SECONDS)) if hurry and hurry.is_set() else left:
        kill(process)


def kill(process: psutil.Process) -> None:
    """Kill a process and its descendants with SIGKILL."""
    family = process_tree(process)
    send_signal(family, signal.SIGKILL)
    wait_until_gone(family, 5.0)
