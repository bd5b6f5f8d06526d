"""Processes by what they are, not by a remembered pid.

A supervisor killed with -9 between starting a process and writing its pid has forgotten it, and a pid
in a file may be somebody else's by now. So ours are known by our directory in their command line or
environment, which they cannot lose.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def by_command(test: Callable[[Sequence[str]], bool]) -> list[psutil.Process]:
    """The live processes, but this one, whose command line passes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and test(process.cmdline()) and alive(process):
                found.append(process)
    return found


def by_environment(name: str, test: Callable[[str], bool]) -> list[psutil.Process]:
    """The live processes of this user, but this one, that were given a variable that passes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and test(process.environ().get(name, "")) and alive(process):
                found.append(process)
    return found


def by_folder(folder: str) -> list[psutil.Process]:
    """The live processes that work in a directory (PostgreSQL's children do in their data)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd() == folder and alive(process):
                found.append(process)
    return found


def tree(process: psutil.Process) -> list[psutil.Process]:
    """It and all its descendants."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def listens(process: psutil.Process, port: int) -> bool:
    """Whether it, or a child of it, listens on a port; yes when this system does not let us know."""
    for member in tree(process):
        try:
            if any(link.laddr and link.laddr[1] == port for link in member.net_connections("tcp")):
                return True
        except psutil.NoSuchProcess:
            continue
        except (psutil.Error, OSError):
            return True
    return False


def families(pids: Iterable[int]) -> dict[int, list[psutil.Process]]:
    """Some processes with all their descendants, found in one look at the machine; nobody for one that is gone."""
    known: dict[int, psutil.Process] = {}
    children: dict[int, list[int]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            children.setdefault(process.ppid(), []).append(process.pid)
            known[process.pid] = process
    found: dict[int, list[psutil.Process]] = {}
    for pid in pids:
        line = [pid] if pid in known else []
        for member in line:  # it grows meanwhile
            line += children.get(member, [])
        found[pid] = [known[member] for member in line]
    return found


def memory(family: Iterable[psutil.Process]) -> int:
    """Resident bytes of processes, shared pages counted in each."""
    total = 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def cpu(family: Iterable[psutil.Process]) -> dict[tuple[int, float], float]:
    """Seconds that each of some processes has computed for, by pid and birth."""
    seconds = {}
    for process in family:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds[process.pid, process.create_time()] = times.user + times.system
    return seconds


def tell(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to those that still live."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def wait_gone(processes: Iterable[psutil.Process], patience: float) -> list[psutil.Process]:
    """Wait up to `patience` seconds; returns those that still live.

    Zombies count as gone: where nobody reaps orphans (a container without an init) they would stay for ever.
    """
    end = time.monotonic() + patience
    left = [p for p in processes if alive(p)]
    while left and time.monotonic() < end:
        time.sleep(0.02)
        left = [p for p in left if alive(p)]
    return left


def end(processes: Iterable[psutil.Process], number: int = signal.SIGTERM, patience: float = 5.0) -> None:
    """Ask them to end, wait, then kill what is left with its children."""
    processes = list(processes)
    # A stopped process gets the signal only when it goes on.
    tell(processes, number)
    tell(processes, signal.SIGCONT)
    for process in wait_gone(processes, patience):
        kill(process)


def kill(process: psutil.Process) -> None:
    """End a process and its descendants at once."""
    family = tree(process)
    tell(family, signal.SIGKILL)
    wait_gone(family, 5.0)
