"""Whether payments can be made: what `payments.state` says of each provider, kept in memory."""

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from infrastructure import clock, metrics
from infrastructure.envelope import Envelope, Undecodable
from infrastructure.settings import Settings
from order_service.payment.messages import STATE, STATE_VOCABULARY, Provider
from rest_api.follower import Follower, Polled
from rest_api.store import Position, Store

log = logging.getLogger(__name__)


class ProviderWatch:
    """The state of every provider. It is a handful of records, and read from the beginning at each start."""

    def __init__(self, settings: Settings, store: Store, *, patience: timedelta) -> None:
        """`patience` is for how long a provider may be away before orders are refused for it."""
        self._patience = patience
        self._follower = Follower(settings, store, "payment providers", (STATE,))
        self._providers: dict[str, Provider] = {}

    def away(self, now: datetime | None = None) -> bool:
        """Whether a provider has been away for longer than anybody should be asked to wait."""
        since = (now or clock.now()) - self._patience
        return any(not provider.available and provider.since < since for provider in self._providers.values())

    def learn(self, told: Iterable[Provider]) -> None:
        """Take in what was told; an older version changes nothing."""
        for provider in told:
            known = self._providers.get(provider.provider)
            if known is None or known.version < provider.version:
                self._providers[provider.provider] = provider

    async def run(self) -> None:
        """Read, for ever. Raises when Kafka is away: run it again."""
        await self._follower.run((), self._take)

    async def _take(self, polled: Polled, _: list[Position]) -> None:
        for records in polled.values():
            for record in records:
                try:
                    event = Envelope.decode(record.key, record.value)
                    self.learn([STATE_VOCABULARY.parse(event)])
                except Undecodable as error:
                    metrics.IGNORED.labels(record.topic).inc()
                    log.warning("%s %s/%s: %s", record.topic, record.partition, record.offset, error)
