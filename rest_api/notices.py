"""The read model of notices: what each shopper was told, and on which channels they want to be."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from aiokafka import ConsumerRecord

from infrastructure import metrics
from infrastructure.envelope import Envelope, Undecodable
from infrastructure.postgres import load_queries
from infrastructure.settings import Settings
from notification_service.messages import EVENT_VOCABULARY, EVENTS, Event, Failed, Forgotten, Preferred, Sent
from rest_api.follower import Follower, Polled
from rest_api.store import HERE, Position, Row, Store, put_positions

log = logging.getLogger(__name__)

_QUERIES: Final = load_queries(HERE / "notice_queries.sql")
Cursor = tuple[datetime, str]
"""Where a page ended: the time and the id of its last notice."""
Told = Callable[[str, str, Preferred], None]
"""Who is told of preferences that came in: by user, and the id of the request that brought them about."""


class Notices:
    """One follower of one topic, and its rows in the edge's schema. Reading raises `store.AWAY` when it is away."""

    def __init__(self, settings: Settings, store: Store, told: Told) -> None:
        self._store = store
        self._told = told
        self._follower = Follower(settings, store, "notices", (EVENTS,))

    async def run(self) -> None:
        """Read on from where the store is, for ever. Raises when Kafka or Postgres is away: run it again."""
        positions = await self._store.positions(self._follower.names)
        await self._follower.run(positions, self._take)

    async def notices(self, user_id: str, *, limit: int, after: Cursor | None) -> list[Row]:
        """The first `limit` notices after `after`, as (id, channel, template, cause, title, body, status, times)."""
        at, notice_id = after or (None, None)
        values = {"user_id": user_id, "at": at, "notice_id": notice_id, "limit": limit}
        return await self._store.rows(_QUERIES["notices"], values)

    async def preferences(self, user_id: str) -> tuple[bool, bool, bool]:
        """Whether a user wants e-mail, SMS and push; who has said nothing wants all."""
        rows = await self._store.rows(_QUERIES["preference"], {"user_id": user_id})
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else (True, True, True)

    async def _take(self, polled: Polled, positions: list[Position]) -> None:
        read = [each for records in polled.values() for record in records if (each := _read(record))]
        async with self._store.transaction() as connection:
            for event, message in read:
                name, values = _statement(event, message)
                await connection.execute(_QUERIES[name], values)
            await put_positions(connection, positions)
        for event, message in read:
            if isinstance(message, Preferred) and event.requestid:
                self._told(message.user_id, event.requestid, message)


def _read(record: ConsumerRecord) -> tuple[Envelope, Event] | None:
    try:
        event = Envelope.decode(record.key, record.value)
        message = _storable(EVENT_VOCABULARY.parse(event))
    except Undecodable as error:
        metrics.IGNORED.labels(record.topic).inc()
        log.warning("%s %s/%s: %s", record.topic, record.partition, record.offset, error)
        return None
    return event, message


def _storable(message: Event) -> Event:
    """The message; `Undecodable` when Postgres would not take it."""
    if isinstance(message, Sent | Failed) and "\0" in message.title + message.body:
        raise Undecodable("bad_data", "a text holds a NUL")
    return message


def _statement(event: Envelope, message: Event) -> tuple[str, dict[str, Any]]:
    match message:
        case Preferred():
            return "put_preference", message.model_dump()
        case Forgotten():
            return "forget", message.model_dump()
        case Sent() | Failed():
            status = message.TYPE.rpartition(".")[2]
            return "put_notice", {**message.model_dump(), "status": status, "settled_at": event.time}
