"""Stock for those who watch it: at once, then as it changes, at most four times a second a product.

A change is written as a frame once, whoever watches; the sockets take the newest when they have room.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from rest_api import frames
from rest_api.outlet import Outlet

INTERVAL_SECONDS: Final = 0.25


class Ticker:
    """The stock of every product, kept in memory (some 150 bytes each), and who watches which."""

    def __init__(self) -> None:
        self._levels: dict[str, tuple[int, int]] = {}
        self._frames: dict[str, str] = {}
        self._watchers: defaultdict[str, set[Outlet]] = defaultdict(set)
        self._watch_all: set[Outlet] = set()
        self._watched: defaultdict[Outlet, set[str]] = defaultdict(set)
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()

    def learn(self, levels: Iterable[tuple[str, int, int]]) -> None:
        """Take in (product, available, version); an older version changes nothing."""
        for product, available, version in levels:
            known = self._levels.get(product)
            if known is None or known[1] < version:
                self._levels[product] = (available, version)
                self._frames.pop(product, None)
                if self._watch_all or product in self._watchers:
                    self._changed[product] = None
        if self._changed:
            self._wake.set()

    def frame(self, product: str) -> str | None:
        """The frame that tells a product's stock as it is now; None when nothing is known of it."""
        frame = self._frames.get(product)
        if frame is None and (level := self._levels.get(product)) is not None:
            frame = self._frames[product] = frames.stock(product, *level).decode()
        return frame

    def start(self, outlet: Outlet, products: tuple[str, ...] | None) -> None:
        """Tell a socket the stock of these products, or of all, now and from now on."""
        if products is None:
            self._watch_all.add(outlet)
            outlet.stock(sorted(self._levels))
            return
        for product in products:
            self._watchers[product].add(outlet)
        self._watched[outlet].update(products)
        outlet.stock(products)

    def stop(self, outlet: Outlet, products: tuple[str, ...] | None) -> None:
        """Tell a socket the stock of these products, or of any, no more."""
        outlet.forget_stock(products)
        if products is None:
            self._watch_all.discard(outlet)
            products = tuple(self._watched.pop(outlet, ()))
        elif outlet in self._watched:
            self._watched[outlet].difference_update(products)
        for product in products:
            watchers = self._watchers.get(product)
            if watchers is not None:
                watchers.discard(outlet)
                if not watchers:
                    del self._watchers[product]

    async def run(self) -> None:
        """Tell what changed, then rest: no product is told more often than the interval allows."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            for outlet in self._watch_all:
                outlet.stock(changed)
            for product in changed:
                for outlet in self._watchers.get(product, ()):
                    outlet.stock((product,))
            await asyncio.sleep(INTERVAL_SECONDS)
