"""Additions to uvicorn's protocols: deadlines for clients that do not read, and strict parsing of heads."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import h11
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from rest_api import server
from rest_api.server import HttpProtocol, StrictReceiveBuffer

GOOD = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\r\n\r\n"


def lines(received: bytes, *, bite: int) -> list[bytes]:
    head = StrictReceiveBuffer()
    for start in range(0, len(received), bite):
        head.__iadd__(received[start : start + bite])
        found = head.maybe_extract_lines()
        if found is not None:
            return [bytes(line) for line in found]
    raise AssertionError("it is not whole")


@given(st.integers(1, 60))
def test_a_valid_head_is_read_however_it_is_split(bite: int) -> None:
    assert lines(GOOD, bite=bite) == [b"GET / HTTP/1.1", b"Host: localhost", b"X: y"]


@given(st.integers(1, 60), st.sampled_from([b"\n", b"\r", b"\r\n ", b"\r\n\t"]))
def test_a_bare_line_feed_is_refused(bite: int, end: bytes) -> None:
    with pytest.raises(h11.LocalProtocolError):
        lines(GOOD.replace(b"localhost", b"local" + end + b"host"), bite=bite)


@given(st.integers(1, 60), st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]))
def test_a_repeated_content_length_is_refused(bite: int, name: bytes) -> None:
    with pytest.raises(h11.LocalProtocolError):
        lines(GOOD.replace(b"X: y", b"Content-Length: 1\r\n" + name + b": 1"), bite=bite)


class SignallessServer(uvicorn.Server):
    """Leaves signals to the tests."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(answer: bytes) -> AsyncIterator[int]:
    """Start a server with these protocols and a fixed response; return its port."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        for start in range(0, len(answer), 8192):
            piece, more = answer[start : start + 8192], start + 8192 < len(answer)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    config = uvicorn.Config(app, http=HttpProtocol, lifespan="off", log_config=None)
    running = SignallessServer(config)
    serve = asyncio.create_task(running.serve([listening]))
    while not running.started:
        await asyncio.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        running.should_exit = True
        await serve


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    line.setblocking(False)
    await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=line, limit=1024)


async def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.3)
    async with serving(b"x" * 2_000_000) as port:
        reader, writer = await connected(port)
        writer.write(GOOD)
        await asyncio.sleep(1.5)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(2_000_000)
        writer.close()


async def test_a_client_that_reads_slowly_gets_the_whole_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UNREAD_SECONDS", 1.0)
    async with serving(b"x" * 200_000) as port:
        reader, writer = await connected(port)
        writer.write(GOOD)
        got = 0
        while got < 200_000:
            got += len(await reader.read(10_000))
            await asyncio.sleep(0.02)
        writer.close()
