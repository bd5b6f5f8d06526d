"""The way out of one socket: a short queue of frames, the stock it watches, and the close at the end.

Frames wait in order. For a reader that takes none just now 64 frames or 32 KiB wait at most (one frame may be larger):
one that is further behind is closed.
Stock does not wait: for each watched product only the newest counts, and it is written when there is nothing else.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from infrastructure import metrics
from rest_api.messages import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES
from rest_api.shopper import Close

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
RETRY_AFTER: Final = 5


class Outlet:
    """Writes to one socket; `put`, `stock` and `close` never wait."""

    __slots__ = ("_bytes", "_closing", "_frames", "_send", "_sending", "_stock", "_stock_frame", "_wake", "_writer")

    def __init__(self, send: Send, stock_frame: Callable[[str], str | None]) -> None:
        """`stock_frame` gives the frame that tells a product's stock as it is now."""
        self._send = send
        self._stock_frame = stock_frame
        self._frames: deque[str] = deque()
        self._bytes = 0
        self._stock: dict[str, None] = {}
        self._closing: Close | None = None
        self._sending = False
        self._wake: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    @property
    def closing(self) -> bool:
        """Whether the socket is being closed; what still comes in counts no more."""
        return self._closing is not None

    def start(self) -> None:
        """Begin to write."""
        self._writer = asyncio.create_task(self._write())

    def stop(self) -> None:
        """The socket is gone."""
        if self._writer is not None:
            self._writer.cancel()

    def put(self, frame: str) -> None:
        """Send a frame after those that wait; closes the socket when too many do."""
        if self._closing is not None:
            return
        if self._sending and self._is_full(frame):
            self._abandon()
            return
        self._frames.append(frame)
        self._bytes += len(frame)
        self._notify()

    def stock(self, products: Iterable[str]) -> None:
        """Tell the stock of these products, as it is when there is room for it."""
        if self._closing is None:
            self._stock.update(dict.fromkeys(products))
            self._notify()

    def forget_stock(self, products: Iterable[str] | None) -> None:
        """Tell the stock of these products, or of any, no more."""
        if products is None:
            self._stock.clear()
        else:
            for product in products:
                self._stock.pop(product, None)

    def close(self, close: Close) -> None:
        """Close the socket once all that waits is written."""
        if self._closing is None:
            self._closing = close
            self._stock.clear()
            self._notify()

    def _is_full(self, frame: str) -> bool:
        waiting = len(self._frames)
        return waiting >= MAX_QUEUED_FRAMES or (waiting > 0 and self._bytes + len(frame) > MAX_QUEUED_BYTES)

    def _abandon(self) -> None:
        """The reader is too slow: what waits for it is dropped, so that only the close stands before its eyes."""
        self._frames.clear()
        self._bytes = 0
        self.close(Close(4410, f"retry_after={RETRY_AFTER}"))
        if self._writer is not None:
            self._writer.cancel()  # it waits for room, which may never come
        self._writer = asyncio.create_task(self._write())

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _write(self) -> None:
        frames, send = self._frames, self._send
        loop = asyncio.get_running_loop()
        try:
            while True:
                while frames:
                    metrics.EDGE_FRAMES_OUT.inc()
                    self._sending = True  # seen by others only while this waits for the reader
                    frame = frames.popleft()
                    self._bytes -= len(frame)
                    await send({"type": "websocket.send", "text": frame})
                    self._sending = False
                if self._stock:
                    told = self._stock_frame(self._next_stock())
                    if told is not None:
                        frames.append(told)
                        self._bytes += len(told)
                    continue
                if self._closing is not None:
                    metrics.EDGE_CLOSES.labels(str(self._closing.code)).inc()
                    reason = self._closing.reason
                    await send({"type": "websocket.close", "code": self._closing.code, "reason": reason})
                    return
                self._wake = loop.create_future()
                await self._wake
        except (OSError, RuntimeError):
            return  # the socket is gone; its reader notices too

    def _next_stock(self) -> str:
        product = next(iter(self._stock))
        del self._stock[product]
        return product
