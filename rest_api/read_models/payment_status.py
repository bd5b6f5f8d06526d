"""Read model of payment availability: the last record of each provider on `payments.state`, kept in memory."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from contracts.payments import STATE, STATE_REGISTRY, Provider
from infrastructure.process import clock
from infrastructure.process.settings import Settings
from rest_api.read_models.projector import Event, Projector
from rest_api.read_models.store import ReadPosition, Store


class PaymentStatus:
    """The state of every provider: a handful of records, read from the beginning at each start."""

    def __init__(self, settings: Settings, store: Store, *, patience: timedelta) -> None:
        """`patience` is how long a provider may be unavailable before orders are refused."""
        self._patience = patience
        self._projector = Projector(settings, store, "payment providers", {STATE: STATE_REGISTRY}, self._apply)
        self._providers: dict[str, Provider] = {}

    def is_unavailable(self, now: datetime | None = None) -> bool:
        """Return True if a provider has been unavailable for longer than `patience`."""
        since = (now or clock.now()) - self._patience
        return any(not provider.available and provider.since < since for provider in self._providers.values())

    def update(self, states: Iterable[Provider]) -> None:
        """Apply states of providers; an older version changes nothing."""
        for provider in states:
            known = self._providers.get(provider.provider)
            if known is None or known.version < provider.version:
                self._providers[provider.provider] = provider

    async def run(self) -> None:
        """Read from the beginning, indefinitely. Raises when Kafka is unavailable; run it again."""
        await self._projector.run(())

    async def _apply(self, events: Sequence[Event], _: Sequence[ReadPosition]) -> None:
        self.update(event.message for event in events)
