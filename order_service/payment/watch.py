"""Keeps it known whether the provider can be reached: the edge takes no new orders while it has been away for long.

While it is away nothing new is asked of it, so perhaps no row is due that would find it back: this asks, when the
breaker lets one question through.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final

from infrastructure.breaker import Breaker, BreakerOpen, Unavailable
from infrastructure.clock import now
from infrastructure.envelope import Envelope
from order_service.payment.agents import Publish
from order_service.payment.client import Provider
from order_service.payment.messages import STATE
from order_service.payment.messages import Provider as State
from order_service.payment.store import PaymentStore

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 0.25
SAY_AGAIN: Final = 30.0
"""Another process may have said otherwise, and died before it saw the provider back."""


class Watch:
    """One for each process; the last to see a change is believed."""

    def __init__(self, name: str, provider: Provider, breaker: Breaker, store: PaymentStore, publish: Publish) -> None:
        self.name = name
        self.provider = provider
        self.breaker = breaker
        self.store = store
        self.publish = publish
        self._said: bool | None = None
        self._version = 0
        self._said_at = 0.0

    async def run(self) -> None:
        """Watch until cancelled; raises when Postgres or Kafka is away, and may be run again."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Ask if nobody knows, and say what is new. At the start nobody does."""
        if self._said is None or self.breaker.state == "half_open":
            with contextlib.suppress(BreakerOpen, Unavailable), self.breaker.attempt():
                await self.provider.ping()
        available = self.breaker.available
        if available == self._said and time.monotonic() - self._said_at < SAY_AGAIN:
            return
        known = await self.store.provider(self.name, available=available)
        if known.version != self._version or self._said is None:
            state = State(provider=self.name, available=known.available, since=known.since, version=known.version)
            await self.publish(STATE, [_event(state)])
        self._said, self._version, self._said_at = available, known.version, time.monotonic()


def _event(state: State) -> Envelope:
    return Envelope(
        id=f"{state.provider}/provider/{state.version}",
        source="/payments",
        type=state.TYPE,
        subject=state.provider,
        time=now(),
        data=state.model_dump(mode="json"),
    )
