"""The events of accounts at this edge: end tokens, and close the sockets that were opened with them.

Every edge reads the events of the last hour at its start, which is longer than a token lives, and keeps what follows
from them in memory. Until then it cannot say which tokens have ended, and refuses those of accounts.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from contracts.accounts import EVENT_REGISTRY, EVENTS
from infrastructure.messaging.consumers import create_consumer
from infrastructure.process import clock
from infrastructure.process.settings import Settings
from rest_api.kafka.gateway import all_partitions
from rest_api.read_models.projector import Event, Projector
from rest_api.read_models.store import ReadPosition, Store
from rest_api.security.account_sessions import TOKEN_SECONDS, AccountSessions
from rest_api.websocket.connections import ConnectionManager

WINDOW: Final = timedelta(seconds=TOKEN_SECONDS) + timedelta(minutes=5)
"""Age of the oldest event that is read."""


class AccountEvents:
    """Consumer of one topic, without stored positions."""

    def __init__(
        self, settings: Settings, store: Store, sessions: AccountSessions, connections: ConnectionManager
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._connections = connections
        self._projector = Projector(settings, store, "accounts", {EVENTS: EVENT_REGISTRY}, self._apply)

    async def run(self) -> None:
        """Read from an hour ago, indefinitely. Raises when Kafka is unavailable; run it again then."""
        await self._projector.run(await self._positions())

    @property
    def fault(self) -> str | None:
        """The reason for which it is not known which tokens have ended; `None` once that is known."""
        return self._projector.fault

    async def _positions(self) -> list[ReadPosition]:
        """Return the positions of the first events within the window."""
        consumer = create_consumer(self._settings, client_id=f"{self._settings.prefix}edge-{self._settings.replica}")
        await consumer.start()
        try:
            partitions = all_partitions(self._settings, EVENTS)
            since = int((clock.now() - WINDOW).timestamp() * 1000)
            found = await consumer.offsets_for_times(dict.fromkeys(partitions, since))
            ends = await consumer.end_offsets(partitions)
        finally:
            await consumer.stop()
        return [
            (each.topic, each.partition, found[each].offset if found.get(each) else ends[each]) for each in partitions
        ]

    async def _apply(self, events: Sequence[Event], _: Sequence[ReadPosition]) -> None:
        now = clock.now().timestamp()
        for event in events:
            if self._sessions.apply(event.message, now):
                self._connections.close_ended(event.message.user_id)
