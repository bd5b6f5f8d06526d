"""Additions to uvicorn's protocols: deadlines for clients that do not read, and strict parsing of heads."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import h11
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from rest_api.server.connection_pool import ConnectionPool
from rest_api.server.deadline import TimeLimits
from rest_api.server.http_protocol import HttpProtocol
from rest_api.server.request_head import StrictReceiveBuffer
from rest_api.settings import EdgeSettings

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


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the host, the query and the body of the request."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    host = dict(scope["headers"])[b"host"]
    text = b" ".join((scope["method"].encode(), host, scope["query_string"], body))
    length = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": text})


@asynccontextmanager
async def serving(answer: bytes, **limits: float) -> AsyncIterator[int]:
    """Start a server with these protocols and a fixed response; return its port."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/echo":
            await echo(scope, receive, send)
            return
        length = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        for start in range(0, len(answer), 8192):
            piece, more = answer[start : start + 8192], start + 8192 < len(answer)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    pool = ConnectionPool(EdgeSettings(), TimeLimits(**limits))
    http: Any = partial(HttpProtocol, pool=pool)
    config = uvicorn.Config(app, http=http, lifespan="off", log_config=None)
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


async def test_a_client_that_does_not_read_is_disconnected() -> None:
    async with serving(b"x" * 2_000_000, unread=0.3) as port:
        reader, writer = await connected(port)
        writer.write(GOOD)
        await asyncio.sleep(1.5)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(2_000_000)
        writer.close()


async def test_a_client_that_reads_slowly_gets_the_whole_response() -> None:
    async with serving(b"x" * 200_000, unread=1.0) as port:
        reader, writer = await connected(port)
        writer.write(GOOD)
        got = 0
        while got < 200_000:
            got += len(await reader.read(10_000))
            await asyncio.sleep(0.02)
        writer.close()


# ---- requests that are understood in one way or refused -------------------------------------------------------------


def request(head: bytes, body: bytes = b"") -> bytes:
    return head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body


def posted(header: bytes, body: bytes) -> bytes:
    return request(b"POST /echo HTTP/1.1\nHost: a\nConnection: close\n" + header, body)


def chunked(body: bytes) -> bytes:
    return posted(b"Transfer-Encoding: chunked", body)


def got(*headers: bytes, target: bytes = b"/echo", version: bytes = b"HTTP/1.1") -> bytes:
    first = b"GET " + target + b" " + version
    return request(b"\n".join([first, *(headers or (b"Host: a",)), b"Connection: close"]))


async def answer(sent: bytes) -> tuple[int, bytes]:
    """Send bytes to a server in one packet, and return the status and the body of its response."""
    async with serving(b"another") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(30):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    return int(head.split()[1]), body


ACCEPTED = {
    "an origin form": (got(target=b"/echo?q"), b"GET a q "),
    "an absolute form": (got(target=b"http://b:80/echo?q"), b"GET b:80 q "),
    "an absolute form with a capital scheme": (got(target=b"HTTP://b/echo"), b"GET b  "),
    "an absolute form with https": (got(target=b"https://b/echo"), b"GET b  "),
    "an absolute form without Host in HTTP/1.0": (
        request(b"GET http://b/echo HTTP/1.0\nX: y"),
        b"GET b  ",
    ),
    "a later minor version": (got(version=b"HTTP/1.2"), b"GET a  "),
    "an empty line before the request": (b"\r\n" + got(), b"GET a  "),
    "100 headers": (got(b"Host: a", *[b"x:y"] * 98), b"GET a  "),
    "a head of nearly 16 KiB": (got(b"Host: a", b"X: " + b"y" * 16_300), b"GET a  "),
    "a length": (posted(b"Content-Length: 2", b"xy"), b"POST a  xy"),
    "a length with zeros in front": (posted(b"Content-Length: 002", b"xy"), b"POST a  xy"),
    "chunks": (chunked(b"1\r\nx\r\n01\r\ny\r\n0\r\n\r\n"), b"POST a  xy"),
    "a chunk extension": (chunked(b'1;a="b"\r\nx\r\n0;c\r\n\r\n'), b"POST a  x"),
    "a trailer": (chunked(b"1\r\nx\r\n0\r\nX: y\r\n\r\n"), b"POST a  x"),
    "many chunks": (chunked(b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n"), b"POST a  " + b"x" * 1000),
    "an upgrade to h2c": (
        got(b"Host: a", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__").replace(
            b"n: close", b"n: Upgrade, close"
        ),
        b"GET a  ",
    ),
    "an upgrade to h2c with a body": (
        posted(b"Upgrade: h2c\nContent-Length: 2", b"xy").replace(b"n: close", b"n: Upgrade, close"),
        b"POST a  xy",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_a_request_is_accepted(name: str) -> None:
    sent, expected = ACCEPTED[name]
    assert await answer(sent) == (200, expected)


REFUSED = {
    "HTTP/2.0": (got(version=b"HTTP/2.0"), 505),
    "HTTP/0.9": (got(version=b"HTTP/0.9"), 505),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/11": (got(version=b"HTTP/11"), 400),
    "101 headers": (got(b"Host: a", *[b"x:y"] * 99), 431),
    "5400 headers": (got(b"Host: a", *[b"x:y"] * 5400), 431),
    "a head of 16 KiB and a bit": (got(b"Host: a", b"X: " + b"y" * 16_385), 431),
    "16 KiB of line ends and colons": (got(b"Host: a", *[b"x:" + b"y" * 200] * 90), 431),
    "a target of 20 KB": (got(target=b"/echo?" + b"q" * 20_000), 431),
    "a target that is not a path": (got(target=b"echo"), 400),
    "a target with another scheme": (got(target=b"ftp://b/echo"), 400),
    "a target with a user": (got(target=b"http://u@b/echo"), 400),
    "a target without a host": (got(target=b"http:///echo"), 400),
    "a star with GET": (got(target=b"*"), 400),
    "an absolute form without Host": (request(b"GET http://b/echo HTTP/1.1\nX: y"), 400),
    "an absolute form with two Hosts": (got(b"Host: a", b"Host: b", target=b"http://b/echo"), 400),
    "two empty lines before the request": (b"\r\n\r\n" + got(), 400),
    "a bare line feed before the request": (b"\n" + got(), 400),
    "a list of equal lengths": (posted(b"Content-Length: 2, 2", b"xy"), 400),
    "a list of lengths without a blank": (posted(b"Content-Length: 2,2", b"xy"), 400),
    "a list of one length": (posted(b"Content-Length: 2,", b"xy"), 400),
    "two equal lengths": (posted(b"Content-Length: 2\nContent-Length: 2", b"xy"), 400),
    "a length and chunks": (posted(b"Content-Length: 2\nTransfer-Encoding: chunked", b"0\r\n\r\n"), 400),
    "chunks in HTTP/1.0": (chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    "a bare CR in a chunk extension": (chunked(b"1;a\rb\r\nx\r\n0\r\n\r\n"), 400),
    "a bare CR before a chunk's end": (chunked(b"1\r\r\nx\r\n0\r\n\r\n"), 400),
    "a bare LF after a chunk size": (chunked(b"1\nx\r\n0\r\n\r\n"), 400),
    "a bare LF in a chunk extension": (chunked(b"1;a\nb\r\nx\r\n0\r\n\r\n"), 400),
    "a NUL in a chunk extension": (chunked(b"1;\0\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk size of 18 digits": (chunked(b"f" * 18 + b"\r\nx"), 400),
    "a chunk size of 17 zeros": (chunked(b"0" * 17 + b"1\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk of 16 digits": (chunked(b"f" * 16 + b"\r\nx"), 413),
    "a chunk of 64 KiB and a byte": (chunked(b"10001\r\nx"), 413),
    "a long chunk extension": (chunked(b"1;" + b"x" * 300 + b"\r\nx\r\n0\r\n\r\n"), 400),
    "an endless chunk extension": (chunked(b"1;" + b"x" * 300), 400),
    "too many chunks": (chunked(b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n"), 400),
    "a trailer of 101 lines": (chunked(b"0\r\n" + b"x:y\r\n" * 101 + b"\r\n"), 431),
    "a trailer of 20 KB": (chunked(b"0\r\nX: " + b"y" * 20_000 + b"\r\n\r\n"), 431),
    "an endless trailer": (chunked(b"0\r\nX: " + b"y" * 20_000), 431),
    "a folded trailer": (chunked(b"0\r\nX: y\r\n z\r\n\r\n"), 400),
    "a bare LF in a trailer": (chunked(b"0\r\nX: y\nZ: z\r\n\r\n"), 400),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_request_is_refused_and_nothing_after_it_is_read(name: str) -> None:
    sent, status = REFUSED[name]
    found, body = await answer(sent + b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n")
    assert found == status
    assert b'"type":"/problems/' in body
    assert b"another" not in body


async def test_a_pipelined_request_behind_a_refused_one_is_not_answered() -> None:
    found, body = await answer(GOOD.replace(b"GET /", b"GET /echo") + REFUSED["HTTP/2.0"][0] + GOOD)
    assert found == 200
    assert b"HTTP/1.1 505" in body
    assert b"another" not in body


async def test_a_client_that_half_closes_gets_its_response() -> None:
    async with serving(b"x" * 100_000) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GOOD)
        writer.write_eof()
        async with asyncio.timeout(30):
            assert (await reader.read()).endswith(b"x" * 100_000)
        writer.close()
