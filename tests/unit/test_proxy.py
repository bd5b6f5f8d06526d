"""The proxy itself: a fault that does not happen would let any test pass."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.testkit.tcp_proxy import Proxy, ProxyFault, proxy


@pytest.fixture
def between() -> Iterator[Proxy]:
    """A proxy before a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo(line: socket.socket) -> None:
            with line:
                try:
                    while piece := line.recv(65536):
                        line.sendall(piece)
                except OSError:
                    pass

        def serve() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=echo, args=(line,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        with proxy(f"127.0.0.1:{server.getsockname()[1]}") as here:
            yield here
        server.shutdown(socket.SHUT_RDWR)


def _line(between: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", between.port), timeout=10)


def _ask(line: socket.socket, what: bytes) -> tuple[bytes, float]:
    began = time.monotonic()
    line.sendall(what)
    got = b""
    while len(got) < len(what):
        got += line.recv(65536)
    return got, time.monotonic() - began


def test_without_a_fault_everything_passes_in_order(between: Proxy) -> None:
    what = bytes(range(256)) * 4096
    with _line(between) as line:
        sender = threading.Thread(target=line.sendall, args=(what,))
        sender.start()
        got = b""
        while len(got) < len(what):
            got += line.recv(65536)
        sender.join()
        assert got == what
        line.shutdown(socket.SHUT_WR)
        assert line.recv(1) == b"", "the end of the stream passes too"


def test_a_delay_is_there_and_back(between: Proxy) -> None:
    with _line(between) as line:
        between.fault = ProxyFault(delay=0.1)
        got, took = _ask(line, b"x")
        assert got == b"x"
        assert took >= 0.2


def test_little_bandwidth_takes_long(between: Proxy) -> None:
    with _line(between) as line:
        between.fault = ProxyFault(bandwidth=50_000)
        _, took = _ask(line, b"x" * 5_000)
        _, again = _ask(line, b"x" * 5_000)
        assert took + again >= 0.1


def test_a_black_hole_keeps_what_it_gets_until_it_closes(between: Proxy) -> None:
    with _line(between) as line:
        _ask(line, b"x")
        between.fault = ProxyFault(hole=True)
        line.sendall(b"late")
        line.settimeout(0.3)
        with pytest.raises(TimeoutError):
            line.recv(1)
        with _line(between) as other:  # a connection is still accepted, as by a kernel whose server sleeps
            other.settimeout(0.1)
            other.sendall(b"x")
            with pytest.raises(TimeoutError):
                other.recv(1)
        line.settimeout(10)
        between.fault = ProxyFault()
        assert line.recv(4) == b"late"


def test_a_reset_breaks_what_is_open_and_nothing_else(between: Proxy) -> None:
    with _line(between) as line:
        _ask(line, b"x")
        assert between.reset() == 2
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    with _line(between) as line:
        assert _ask(line, b"y")[0] == b"y"


def test_a_refused_connection_is_reset(between: Proxy) -> None:
    between.fault = ProxyFault(refuse=True)
    with pytest.raises(ConnectionResetError), _line(between) as line:
        line.recv(1)
    between.fault = ProxyFault()
    with _line(between) as line:
        assert _ask(line, b"y")[0] == b"y"


def test_dropped_bytes_are_lost_and_the_connection_ends_with_the_fault(between: Proxy) -> None:
    with _line(between) as line:
        _ask(line, b"x")
        between.fault = ProxyFault(drop=True)
        line.sendall(b"lost")
        line.settimeout(0.3)
        with pytest.raises(TimeoutError):
            line.recv(1)
        between.fault = ProxyFault()
        line.settimeout(10)
        with suppress(ConnectionResetError):
            assert line.recv(1) == b"", "nothing comes behind a gap"
    with _line(between) as line:
        assert _ask(line, b"y")[0] == b"y"
