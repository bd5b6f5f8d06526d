"""CPU and memory use of processes, and a description of the machine."""

import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from infrastructure.local import processes

MS: Final = 1000.0


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time used so far by processes and their children, including reaped children."""
    total = 0.0
    for process in process_tree(pids):
        with suppress(psutil.Error):
            used = process.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    return total


def rss_bytes(pids: Iterable[int]) -> int:
    """Return the resident memory of processes and their children."""
    total = 0
    for process in process_tree(pids):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def process_tree(pids: Iterable[int]) -> list[psutil.Process]:
    """Return the processes of these ids and all their children, each once."""
    tree: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                tree[each.pid] = each
    return [*tree.values()]


def busy_seconds() -> float:
    """Return the CPU time used so far by the whole machine, including other guests of its hypervisor."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


class CpuMeter:
    """CPU time by group of processes, counted from construction."""

    def __init__(self, groups: Mapping[str, Iterable[int]]) -> None:
        self._groups = {name: tuple(pids) for name, pids in groups.items()}
        self._started = self._read()

    def milliseconds(self, requests: int) -> dict[str, float]:
        """Return milliseconds per request, by group."""
        now = self._read()
        return {name: round((now[name] - self._started[name]) * MS / max(1, requests), 4) for name in now}

    def _read(self) -> dict[str, float]:
        return {name: cpu_seconds(pids) for name, pids in self._groups.items()}


class ProcessMeter:
    """CPU time by name of a process, counted from construction; each name stands for some processes."""

    def __init__(self, families: Mapping[str, Sequence[psutil.Process]]) -> None:
        self._families = families
        self._began, self._started = time.perf_counter(), self._read()

    def milliseconds_per(self, requests: int) -> dict[str, float]:
        """Return the milliseconds per request, by name."""
        return {name: seconds * MS / max(1, requests) for name, seconds in self._used().items()}

    def percent_of_a_core(self) -> dict[str, float]:
        """Return the mean use of one core in percent, by name."""
        elapsed = max(1e-9, time.perf_counter() - self._began)
        return {name: 100 * seconds / elapsed for name, seconds in self._used().items()}

    def _used(self) -> dict[str, float]:
        return {name: max(0.0, seconds - self._started[name]) for name, seconds in self._read().items()}

    def _read(self) -> dict[str, float]:
        return {name: sum(processes.cpu_times(family).values()) for name, family in self._families.items()}


def mebibytes_by_name(families: Mapping[str, Sequence[psutil.Process]]) -> dict[str, float]:
    """Return the memory by name, with each shared page divided among its users (PSS); empty where it is unknown."""
    found = {name: processes.proportional_bytes(family) for name, family in families.items()}
    known = {name: size / 2**20 for name, size in found.items() if size is not None}
    return known if len(known) == len(found) else {}


def describe_machine() -> dict[str, Any]:
    """Return a description of the machine."""
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load_average() -> float:
    """Return the one-minute load average."""
    return round(os.getloadavg()[0], 2)
