"""Broadcasts stock to the sockets that watch it: at once, then on change, at most four times per second and product.

A change is encoded once for all watchers, and each socket takes the newest frame when it has room.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from rest_api.protocol import frame_encoder
from rest_api.websocket.send_queue import SendQueue

INTERVAL_SECONDS: Final = 0.25


class StockBroadcaster:
    """The stock of every product, in memory (about 150 bytes each), and the sockets that watch it."""

    def __init__(self) -> None:
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
        """Send the stock of these products, or of all, to a socket, now and whenever it changes."""
        if products is None:
            self._watch_all.add(send_queue)
            send_queue.send_stock(sorted(self._stock))
            return
        for product in products:
            self._watchers[product].add(send_queue)
        self._watched[send_queue].update(products)
        send_queue.send_stock(products)

    def unwatch(self, send_queue: SendQueue, products: tuple[str, ...] | None) -> None:
        """Stop sending the stock of these products, or of any, to a socket."""
        send_queue.drop_stock(products)
        if products is None:
            self._watch_all.discard(send_queue)
            products = tuple(self._watched.pop(send_queue, ()))
        elif send_queue in self._watched:
            self._watched[send_queue].difference_update(products)
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
