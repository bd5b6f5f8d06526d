"""A line that can be cut: a TCP proxy on this machine that ends a connection after so many bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]


@dataclass
class Cutter:
    """Passes everything on to `target`; the connection after `plan` was set is cut, and the following ones are not."""

    target: int
    port: int = 0
    cut: int = 0
    """How many connections were cut."""
    _plan: tuple[Direction, int] | None = None

    def plan(self, direction: Direction, after: int) -> None:
        """Cut the next connection after this many bytes to the shop (`up`) or from it (`down`)."""
        self._plan = direction, after

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["Cutter"]:
        """Listen on a port of this machine."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plan, self._plan = self._plan, None
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        flows = [
            asyncio.create_task(self._flow(reader, back, plan[1] if plan and plan[0] == "up" else None)),
            asyncio.create_task(self._flow(there, writer, plan[1] if plan and plan[0] == "down" else None)),
        ]
        try:
            await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for flow in flows:
                flow.cancel()
            for end in (writer, back):
                end.transport.abort()

    async def _flow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
        try:
            while left is None or left > 0:
                part = await reader.read(65536 if left is None else left)
                if not part:
                    return
                writer.write(part)
                await writer.drain()
                left = None if left is None else left - len(part)
            self.cut += 1
        except ConnectionError:
            return
