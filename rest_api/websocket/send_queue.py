"""The bounded send queue of one socket: frames in order, the newest stock of watched products, and the close.

While the client reads nothing, at most 64 frames or 32 KiB wait (a single frame may be larger); beyond that the socket
is closed. Stock is not queued: only the newest level of each watched product counts, and it is written when no frame
waits.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from infrastructure.observability import metrics
from rest_api.protocol.client_frames import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES
from rest_api.protocol.effects import Close

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
RETRY_AFTER: Final = 5


class SendQueue:
    """The writer of one socket; `put`, `send_stock` and `close` never wait. Call `stop` when the socket is gone."""

    __slots__ = (
        "_bytes",
        "_closing",
        "_queue",
        "_send",
        "_sending",
        "_stale_stock",
        "_stock_frame",
        "_task",
        "_wakeup",
    )

    def __init__(self, send: Send, stock_frame: Callable[[str], str | None]) -> None:
        """`stock_frame` returns the frame with the current stock of a product, or `None`."""
        self._send = send
        self._stock_frame = stock_frame
        self._queue: deque[str] = deque()
        self._bytes = 0
        self._stale_stock: dict[str, None] = {}
        self._closing: Close | None = None
        self._sending = False
        self._wakeup: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_closing(self) -> bool:
        """True if the socket is being closed; frames that still arrive are ignored."""
        return self._closing is not None

    def start(self) -> None:
        """Start the task that writes."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop writing; the socket is gone."""
        if self._task is not None:
            self._task.cancel()

    def put(self, frame: str) -> None:
        """Queue a frame; close the socket instead if the queue is full."""
        if self._closing is not None:
            return
        if self._sending and self._is_full(frame):
            self._drop_slow_client()
            return
        self._queue.append(frame)
        self._bytes += len(frame)
        self._notify()

    def send_stock(self, products: Iterable[str]) -> None:
        """Send the stock of these products, as it is when there is room for it."""
        if self._closing is None:
            self._stale_stock.update(dict.fromkeys(products))
            self._notify()

    def drop_stock(self, products: Iterable[str] | None) -> None:
        """Drop the stock of these products, or of all, that still waits to be sent."""
        if products is None:
            self._stale_stock.clear()
        else:
            for product in products:
                self._stale_stock.pop(product, None)

    def close(self, close: Close) -> None:
        """Close the socket once all queued frames are written."""
        if self._closing is None:
            self._closing = close
            self._stale_stock.clear()
            self._notify()

    def _is_full(self, frame: str) -> bool:
        waiting = len(self._queue)
        return waiting >= MAX_QUEUED_FRAMES or (waiting > 0 and self._bytes + len(frame) > MAX_QUEUED_BYTES)

    def _drop_slow_client(self) -> None:
        """Drop all queued frames of a client that reads too slowly, so that it sees the close at once."""
        self._queue.clear()
        self._bytes = 0
        self.close(Close(4410, f"retry_after={RETRY_AFTER}"))
        if self._task is not None:
            self._task.cancel()  # it waits for the client to read, which may never happen
        self._task = asyncio.create_task(self._run())

    def _notify(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _run(self) -> None:
        frames, send = self._queue, self._send
        loop = asyncio.get_running_loop()
        try:
            while True:
                while frames:
                    metrics.EDGE_FRAMES_OUT.inc()
                    self._sending = True  # other tasks see True only while `send` waits for the client
                    frame = frames.popleft()
                    self._bytes -= len(frame)
                    await send({"type": "websocket.send", "text": frame})
                    self._sending = False
                if self._stale_stock:
                    stock = self._stock_frame(self._next_stock())
                    if stock is not None:
                        frames.append(stock)
                        self._bytes += len(stock)
                    continue
                if self._closing is not None:
                    metrics.EDGE_CLOSES.labels(str(self._closing.code)).inc()
                    reason = self._closing.reason
                    await send({"type": "websocket.close", "code": self._closing.code, "reason": reason})
                    return
                self._wakeup = loop.create_future()
                await self._wakeup
        except (OSError, RuntimeError):
            return  # the socket is gone; the reading task notices it too

    def _next_stock(self) -> str:
        product = next(iter(self._stale_stock))
        del self._stale_stock[product]
        return product
