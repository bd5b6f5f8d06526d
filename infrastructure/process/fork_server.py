"""Fork server: a process that has imported all services once and forks a child for each process to start.

Importing the libraries takes a process 1.5 seconds of CPU and 50 MiB. A forked child starts at once and shares these
pages with its siblings. Each child is a process of its own: with its own session, environment, log and process title,
and it can be killed and started alone.

`ForkServer` is the client. The server runs `python -m infrastructure.process.fork_server`; it has one thread, no event
loop and no socket but that of its client. When its client ends, it ends too and leaves its children running.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import itertools
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn

import setproctitle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

START_SECONDS: Final = 60.0
"""Time for the server to import the modules; a start that takes longer fails."""


# ---- client ---------------------------------------------------------------------------------------------------------


class ForkedProcess:
    """A child of the fork server, with the methods of `subprocess.Popen` that a supervisor needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Exit status as in `Popen`; `None` while the process runs, and if the server ended before the process."""
        self.ended = threading.Event()

    def wait(self, timeout: float) -> int | None:
        """Wait for the end of the process; return its status, `None` if the server ended first.

        Raise `subprocess.TimeoutExpired` if the process has not ended in time.
        """
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode


class ForkServer:
    """Starts Python modules as forked processes, from a server process that has imported `modules`.

    The server process is started with the first child, and again with the next one if it ended. The methods may be
    called from any thread.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._modules, self._environment = tuple(modules), environment
        self._lock = threading.Lock()
        self._server: _Connection | None = None

    def warm(self) -> None:
        """Start the server process, so that it imports the modules before the first `start`."""
        with self._lock:
            self._connected()

    def start(
        self, module: str, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, output: Path
    ) -> ForkedProcess:
        """Run `python -m module arguments…` in a forked process that appends its output to a file.

        Raise `OSError` if the process cannot be started; `start` may then be called again.
        """
        with self._lock:
            server = self._connected()
        request = {"module": module, "arguments": list(arguments), "env": dict(env)}
        return server.start({**request, "cwd": str(cwd), "output": str(output)})

    def close(self) -> None:
        """End the server process; its children go on."""
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None

    def _connected(self) -> _Connection:
        if self._server is None or self._server.is_lost:
            self._server = _Connection(self._modules, self._environment)
        return self._server


class _Connection:
    """One server process, and the thread that reads its messages."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str] | None) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                env=None if environment is None else dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = ours
        self.is_lost = False
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._replies: dict[int, dict[str, Any]] = {}
        self._arrived = threading.Condition(self._lock)
        self._children: dict[int, ForkedProcess] = {}
        threading.Thread(target=self._read, name="fork server", daemon=True).start()

    def start(self, request: dict[str, Any]) -> ForkedProcess:
        number = next(self._numbers)
        with self._arrived:
            self._socket.sendall(json.dumps({"id": number, **request}).encode() + b"\n")
            answered = self._arrived.wait_for(lambda: number in self._replies or self.is_lost, START_SECONDS)
            reply = self._replies.pop(number, None)
            if not answered or reply is None:
                raise OSError("the fork server does not answer")
            if "error" in reply:
                raise OSError(reply["errno"], reply["error"])
            started: ForkedProcess = reply["child"]  # it may have ended already
            return started

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait(5.0)

    def _read(self) -> None:
        with self._socket, contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                with self._arrived:
                    if "exited" in message:
                        child = self._children.pop(message["exited"])
                        child.returncode = os.waitstatus_to_exitcode(message["status"])
                        child.ended.set()
                        continue
                    if "pid" in message:
                        message["child"] = self._children[message["pid"]] = ForkedProcess(message["pid"])
                    self._replies[message["id"]] = message
                    self._arrived.notify_all()
        with self._arrived:
            self.is_lost = True
            self._arrived.notify_all()
            for child in self._children.values():
                child.ended.set()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)


# ---- server ---------------------------------------------------------------------------------------------------------


def serve(client: socket.socket, modules: Sequence[str]) -> None:
    """Import the modules, then fork a child for each request of the client until it closes the connection."""
    # The first call finds the memory of the title behind the original environment, so it must come first.
    setproctitle.setproctitle(" ".join(sys.orig_argv))
    for module in modules:
        with contextlib.suppress(Exception):  # the child reports it, in its own log
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    wake_read, wake_write = socket.socketpair()
    for end in (wake_read, wake_write):
        end.setblocking(False)  # noqa: FBT003 - the standard library's signature
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write.fileno())
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if wake_read in ready:
                wake_read.recv(4096)
                _report_ended_children(client)
            if client in ready:
                data = _receive(client)
                if not data:
                    return
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    _start_child(json.loads(line), client, close=(client, wake_read, wake_write, selector))


def _receive(client: socket.socket) -> bytes:
    """Return received bytes; none if the client has ended."""
    try:
        return client.recv(1 << 16)
    except OSError:
        return b""


def _send(client: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a client that has ended is noticed by `_receive`
        client.sendall(json.dumps(message).encode() + b"\n")


def _report_ended_children(client: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _send(client, {"exited": pid, "status": status})


def _start_child(request: dict[str, Any], client: socket.socket, close: Sequence[Any]) -> None:
    """Fork, and report the pid; the child never returns."""
    try:
        with open(request["output"], "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            pid = os.fork()
            if not pid:
                _run_child(request, output.fileno(), close)
    except OSError as error:
        _send(client, {"id": request["id"], "error": error.strerror, "errno": error.errno})
    else:
        _send(client, {"id": request["id"], "pid": pid})


def _run_child(request: dict[str, Any], output: int, close: Sequence[Any]) -> NoReturn:
    """Become a process of its own, run the module as `python -m` does, and exit with its status."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in close:
            each.close()
        os.setsid()
        os.chdir(request["cwd"])
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.environ.clear()
        os.environ.update(request["env"])
        _set_title(request)
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:  # noqa: BLE001 - the interpreter would print it and end, too
        traceback.print_exc()
    _exit(status)


def _exit(status: int) -> NoReturn:
    """End as the interpreter does: wait for threads, call exit functions, flush."""
    shutdown: Callable[[], None] = threading._shutdown  # type: ignore[attr-defined]  # noqa: SLF001 - `multiprocessing` calls it, too
    for each in (shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # noqa: SLF001 - as above
        with contextlib.suppress(Exception):
            each()
    os._exit(status)


def _set_title(request: Mapping[str, Any]) -> None:
    """Set the title that `ps` shows: the command line of the process if it had been started without a fork server.

    It ends with the working directory, by which a later supervisor recognises the process: a forked process keeps no
    environment of its own that others can read.
    """
    command = " ".join((sys.executable, "-m", request["module"], *request["arguments"]))
    setproctitle.setproctitle(f"{command} [{request['cwd']}]")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
