"""Broadcasts stock to the sockets that watch it: at once, then on change, at most four times per second and product.

A change is encoded once for all watchers, and each socket takes the newest frame when it has room.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from rest_api.protocol import frame_encoder
from rest_api.websocket.send_queue import SendQueue

INTERVAL_SECONDS: Final = 0.25
REPEAT_SECONDS: Final = 5.0
"""A socket that watches a product already is sent its stock again for a repeated `watch` after this time only."""


class StockBroadcaster:
    """The stock of every product, in memory (about 150 bytes each), and the sockets that watch it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent_at: defaultdict[SendQueue, dict[str | None, float]] = defaultdict(dict)
        """When each watched product, or with `None` the whole stock, was sent because a socket asked for it."""
        self._stock: dict[str, tuple[int, int]] = {}
        self._frames: dict[str, str] = {}
        self._watchers: defaultdict[str, set[SendQueue]] = defaultdict(set)
        self._watch_all: set[SendQueue] = set()
        self._watched: defaultdict[SendQueue, set[str]] = defaultdict(set)
        self._changed: dict[str, None] = {}
        self._changes_pending = asyncio.Event()

    def update(self, levels: Iterable[tuple[str, int, int]]) -> None:
        """Apply (product, available, version); an older version changes nothing."""
        for product, available, version in levels:
            known = self._stock.get(product)
            if known is None or known[1] < version:
                self._stock[product] = (available, version)
                self._frames.pop(product, None)
                if self._watch_all or product in self._watchers:
                    self._changed[product] = None
        if self._changed:
            self._changes_pending.set()

    def stock_frame(self, product: str) -> str | None:
        """Return the frame with the current stock of a product; `None` if the stock is unknown."""
        frame = self._frames.get(product)
        if frame is None and (level := self._stock.get(product)) is not None:
            frame = self._frames[product] = frame_encoder.stock(product, *level).decode()
        return frame

    def watch(self, send_queue: SendQueue, products: tuple[str, ...] | None) -> None:
        """Send the stock of these products, or of all, to a socket, now and whenever it changes.

        The socket has the stock that it watches already, which is sent again once in `REPEAT_SECONDS` at most.
        """
        sent_at, now = self._sent_at[send_queue], self._clock()
        if products is None:
            if send_queue not in self._watch_all or now - sent_at[None] >= REPEAT_SECONDS:
                self._watch_all.add(send_queue)
                sent_at[None] = now
                send_queue.send_stock(sorted(self._stock))
            return
        watched = self._watched[send_queue]
        due = [each for each in products if each not in watched or now - sent_at[each] >= REPEAT_SECONDS]
        sent_at.update(dict.fromkeys(due, now))
        for product in due:
            self._watchers[product].add(send_queue)
        watched.update(due)
        send_queue.send_stock(due)

    def unwatch(self, send_queue: SendQueue, products: tuple[str, ...] | None) -> None:
        """Stop sending the stock of these products, or of any, to a socket."""
        send_queue.drop_stock(products)
        if products is None:
            self._watch_all.discard(send_queue)
            self._sent_at.pop(send_queue, None)
            products = tuple(self._watched.pop(send_queue, ()))
        elif send_queue in self._watched:
            self._watched[send_queue].difference_update(products)
            for product in products:
                self._sent_at[send_queue].pop(product, None)
        for product in products:
            watchers = self._watchers.get(product)
            if watchers is not None:
                watchers.discard(send_queue)
                if not watchers:
                    del self._watchers[product]

    async def run(self) -> None:
        """Run indefinitely: send the changes, then pause, so that a product is sent once per interval at most."""
        while True:
            await self._changes_pending.wait()
            self._changes_pending.clear()
            changed, self._changed = self._changed, {}
            for send_queue in self._watch_all:
                send_queue.send_stock(changed)
            for product in changed:
                for send_queue in self._watchers.get(product, ()):
                    send_queue.send_stock((product,))
            await asyncio.sleep(INTERVAL_SECONDS)
