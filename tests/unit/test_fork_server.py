"""Processes forked from one that has imported their modules: each is a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infrastructure.local import processes
from infrastructure.process.fork_server import ForkedProcess, ForkServer

CHILD = """
import json, os, random, sys, threading, time

if __name__ == "__main__":
    if sys.argv[1] == "report":
        facts = {"arguments": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ), "pid": os.getpid(),
                 "session": os.getsid(0), "parent": os.getppid(), "random": random.random(), "name": __name__,
                 "threads": threading.active_count(), "open": len(os.listdir("/proc/self/fd"))}
        print(json.dumps(facts))
        sys.exit(3)
    if sys.argv[1] == "fail":
        raise ValueError("it went wrong")
    if sys.argv[1] == "words":
        sys.exit("some words")
    if sys.argv[1] == "sleep":
        print("sleeping", flush=True)
        time.sleep(60)
"""


class Nursery:
    """A fork server with a module of this test, and its children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "forked_child.py").write_text(CHILD)
        self.output = folder / "log"
        self.server = ForkServer(["forked_child"], {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"})
        self.children: list[ForkedProcess] = []

    def start(self, *arguments: str, module: str = "forked_child", **env: str) -> ForkedProcess:
        child = self.server.start(module, arguments, env=env, cwd=self.folder, output=self.output)
        self.children.append(child)
        return child

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 30
        while text not in self.output.read_text() and time.monotonic() < until:
            time.sleep(0.01)
        assert text in self.output.read_text()

    @property
    def parent(self) -> psutil.Process:
        """The server's process."""
        return psutil.Process(psutil.Process(self.children[-1].pid).ppid())


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    here = Nursery(tmp_path)
    yield here
    here.server.close()
    for child in here.children:
        if not child.ended.is_set() or child.returncode is None:
            processes.terminate([psutil.Process(child.pid)] if psutil.pid_exists(child.pid) else [], signal.SIGKILL)


def test_a_child_is_a_process_of_its_own(nursery: Nursery) -> None:
    one, other = nursery.start("report", "x", A="1"), nursery.start("report", "y", B="2")
    assert (one.wait(30), other.wait(30)) == (3, 3)
    reports = {each["pid"]: each for each in map(json.loads, nursery.output.read_text().splitlines())}
    first, second = reports[one.pid], reports[other.pid]
    assert (first["arguments"], second["arguments"]) == (["report", "x"], ["report", "y"])
    assert (first["environment"], second["environment"]) == ({"A": "1"}, {"B": "2"})
    assert first["random"] != second["random"], "their random numbers differ"
    for each in (first, second):
        assert each["session"] == each["pid"], "a signal to the supervisor's terminal does not reach it"
        assert (each["cwd"], each["name"], each["threads"]) == (str(nursery.folder), "__main__", 1)
        assert each["open"] == 4, "standard input, output and error, and the listing itself"


def test_an_end_is_reported_as_by_popen(nursery: Nursery) -> None:
    assert nursery.start("fail").wait(30) == 1
    assert nursery.start("words").wait(30) == 1
    assert nursery.start(module="no_such_module").wait(30) == 1
    log = nursery.output.read_text()
    assert "ValueError: it went wrong" in log
    assert "some words" in log
    assert "no_such_module" in log
    killed = nursery.start("sleep")
    nursery.wait_for("sleeping")
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL


def test_a_child_is_found_by_its_title(nursery: Nursery) -> None:
    child = nursery.start("sleep")
    nursery.wait_for("sleeping")
    [found] = processes.find_by_title(lambda title: title.endswith(f"-m forked_child sleep [{nursery.folder}]"))
    assert found.pid == child.pid


def test_children_outlive_their_server_and_another_starts_the_next(nursery: Nursery) -> None:
    child = nursery.start("sleep")
    nursery.wait_for("sleeping")
    server = nursery.parent
    server.kill()
    assert child.wait(30) is None, "nobody can tell its status any more"
    assert processes.is_alive(psutil.Process(child.pid))
    assert nursery.start("report").wait(30) == 3
    assert not processes.is_alive(server)


def test_children_outlive_the_client(nursery: Nursery) -> None:
    child = nursery.start("sleep")
    nursery.wait_for("sleeping")
    server = nursery.parent
    nursery.server.close()
    assert not processes.is_alive(server)
    assert processes.is_alive(psutil.Process(child.pid))


def test_a_child_that_ends_at_once_is_reported(nursery: Nursery) -> None:
    assert [nursery.start("words").wait(30) for _ in range(50)] == [1] * 50


def test_output_that_cannot_be_opened_is_an_error(nursery: Nursery) -> None:
    nursery.output = nursery.folder / "missing/log"
    with pytest.raises(FileNotFoundError):
        nursery.start("report")
    nursery.output = nursery.folder / "log"
    assert nursery.start("report").wait(30) == 3


def test_the_end_of_a_process_is_noticed_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watched = psutil.Process(child.pid)
        processes.wait_for_end(watched, 0.01)
        assert processes.is_alive(watched)
        child.kill()
        processes.wait_for_end(watched, 3600)
        assert not processes.is_alive(watched)
        child.wait()
        processes.wait_for_end(watched, 3600)
