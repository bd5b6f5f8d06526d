"""Monitors and publishes the availability of the provider: the edge refuses new orders while it is unavailable.

While the provider is unavailable, perhaps no row is due whose call would find it available again. Therefore the monitor
pings it when the half-open circuit breaker lets one call through.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final

from contracts.envelope import Envelope
from contracts.payments import STATE
from contracts.payments import Provider as State
from infrastructure.process.clock import now
from infrastructure.security.breaker import BreakerOpen, CircuitBreaker, Unavailable
from order_service.payment.agents import Publish
from order_service.payment.provider_client import ProviderClient
from order_service.payment.store import PaymentStore

log = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 0.25
"""Seconds between two checks."""
REFRESH_INTERVAL: Final = 30.0
"""Seconds until an unchanged state is stored again: another process may have stored the opposite and crashed."""


class ProviderMonitor:
    """The availability monitor of one process. Of several processes, the last one to see a change wins."""

    def __init__(
        self, name: str, provider: ProviderClient, breaker: CircuitBreaker, store: PaymentStore, publish: Publish
    ) -> None:
        self.name = name
        self.provider = provider
        self.breaker = breaker
        self.store = store
        self.publish = publish
        self._available: bool | None = None
        self._version = 0
        self._stored_at = 0.0

    async def run(self) -> None:
        """Check until cancelled. Raise if Postgres or Kafka is unavailable; call it again then."""
        while True:
            await self.check()
            await asyncio.sleep(CHECK_INTERVAL)

    async def check(self) -> None:
        """Ping the provider if its state is unknown or the breaker half-open. Publish a changed state."""
        if self._available is None or self.breaker.state == "half_open":
            with contextlib.suppress(BreakerOpen, Unavailable), self.breaker.attempt():
                await self.provider.ping()
        available = self.breaker.available
        if available == self._available and time.monotonic() - self._stored_at < REFRESH_INTERVAL:
            return
        stored = await self.store.save_availability(self.name, available=available)
        if stored.version != self._version or self._available is None:
            state = State(provider=self.name, available=stored.available, since=stored.since, version=stored.version)
            await self.publish(STATE, [_event(state)])
        self._available, self._version, self._stored_at = available, stored.version, time.monotonic()


def _event(state: State) -> Envelope:
    return Envelope.of(
        state,
        source="/payments",
        subject=state.provider,
        event_id=f"{state.provider}/provider/{state.version}",
        time=now(),
        exclude_none=False,
    )
