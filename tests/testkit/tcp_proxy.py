"""A TCP proxy that behaves badly on request: delay, drop, reset, black hole, little bandwidth.

It connects a service and one of its servers. Its fault may be changed at any time, also for connections that
are open: `proxy.fault = ProxyFault(delay=0.05)`. It runs on a loop of its own, in a thread.
"""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

CHUNK: Final = 64 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class ProxyFault:
    """How bytes fare. The default passes everything on at once."""

    delay: float = 0.0
    """Seconds that each piece is late, in each direction; pieces overlap, so bandwidth is not reduced by it."""
    bandwidth: float = float("inf")
    """Bytes per second, of each connection in each direction."""
    hole: bool = False
    """True: bytes are neither passed on nor refused, as behind a cut cable, but held back until the fault changes."""
    drop: bool = False
    """True: bytes are lost, and the connection stays open and silent. A connection that has lost bytes is closed when
    the fault changes: nothing may come behind a gap."""
    refuse: bool = False
    """New connections are reset at once, as by a server that is not there."""


class Proxy:
    """Listens on `port` of this machine and passes on to `target` (host, port)."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self.accepted = 0
        self._fault = ProxyFault()
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    @property
    def fault(self) -> ProxyFault:
        """How bytes fare now."""
        return self._fault

    @fault.setter
    def fault(self, fault: ProxyFault) -> None:
        async def change() -> None:
            self._fault = fault
            self._changed.set()
            self._changed = asyncio.Event()

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(10)

    def reset(self) -> int:
        """Break every open connection with a TCP reset, in both directions; how many ends that were."""

        async def cut() -> int:
            ends = list(self._open)
            for writer in ends:
                with contextlib.suppress(OSError):
                    raw: socket.socket = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()
            return len(ends)

        return asyncio.run_coroutine_threadsafe(cut(), self._loop).result(10)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        """Cut everything and end."""
        self.reset()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await self._stopped.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open.add(writer)
        try:
            if self._fault.refuse:
                raw: socket.socket = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                return
            there, back = await asyncio.open_connection(*self.target)
            self._open.add(back)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pass_on(reader, back))
                    both.create_task(self._pass_on(there, writer))
            finally:
                self._open.discard(back)
                back.transport.abort()
        except* OSError:
            pass  # one end is gone, and the abort closes the other
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read at once, write when it is due, in order; the end of the stream is a piece like any other."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def read() -> None:
            while True:
                piece = await reader.read(CHUNK)
                await pieces.put((time.monotonic() + self._fault.delay, piece))
                if not piece:
                    return

        async with asyncio.TaskGroup() as reading:
            reading.create_task(read())
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(due - time.monotonic())
                while self._fault.hole:
                    await self._changed.wait()
                if self._fault.drop:
                    while self._fault.drop:
                        await self._changed.wait()
                    raise ConnectionResetError
                if not piece:
                    break
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(len(piece) / self._fault.bandwidth)
        if writer.can_write_eof():
            writer.write_eof()


@contextmanager
def proxy(address: str) -> Iterator[Proxy]:
    """A proxy before `host:port`, in good fault."""
    host, _, port = address.rpartition(":")
    here = Proxy((host, int(port)))
    here.start()
    try:
        yield here
    finally:
        here.stop()
