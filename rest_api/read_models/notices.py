"""The read model of notices: those that each shopper was sent, and the channels on which each wants them."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from contracts.envelope import Envelope, Message, UndecodableError
from contracts.notifications import EVENT_REGISTRY, EVENTS, Event, Failed, Forgotten, Preferred, Sent, Skipped
from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import load_queries
from rest_api.read_models.projector import Event as Projected
from rest_api.read_models.projector import Projector
from rest_api.read_models.store import SQL_FOLDER, ReadPosition, Row, Store, put_positions

_QUERIES: Final = load_queries(SQL_FOLDER / "notice_queries.sql")
DELETE_LIMIT: Final = 1000
"""Notices deleted by one statement."""
DELETE_PAUSE_SECONDS: Final = 0.1
"""Pause between two such statements, so that others have time on the disk."""
PageCursor = tuple[datetime, str]
"""The end of a page: the time and the id of its last notice."""
OnPreferences = Callable[[str, str, Preferred], None]
"""Called with every change of preferences: the user, the id of the request that made it, and the preferences."""


class NoticeReadModel:
    """Consumer of one topic, and queries of its rows in the edge's schema.

    Queries raise one of `store.UNAVAILABLE_ERRORS` if Postgres is unavailable.
    """

    def __init__(self, settings: Settings, store: Store, on_preferences: OnPreferences) -> None:
        self._store = store
        self._on_preferences = on_preferences
        topics = {EVENTS: EVENT_REGISTRY}
        self._projector = Projector(settings, store, "notices", topics, self._apply, check=_check_storable)

    async def run(self) -> None:
        """Read from the stored positions, indefinitely. Raises when Kafka or Postgres is unavailable; run it again."""
        await self._projector.run()

    async def list_notices(self, user_id: str, *, limit: int, after: PageCursor | None) -> list[Row]:
        """Return `limit` notices after `after`.

        A row is (id, channel, template, cause, title, body, status, accepted_at, settled_at, reason).
        """
        at, notice_id = after or (None, None)
        values = {"user_id": user_id, "at": at, "notice_id": notice_id, "limit": limit}
        return await self._store.fetch_all(_QUERIES["notices"], values)

    async def preferences(self, user_id: str) -> tuple[bool, bool, bool]:
        """Return if a user wants e-mail, SMS and push; by default all of them."""
        rows = await self._store.fetch_all(_QUERIES["preference"], {"user_id": user_id})
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else (True, True, True)

    async def delete_old(self, days: int) -> None:
        """Delete all notices that are older than `days` days, in small batches."""
        values = {"days": days, "limit": DELETE_LIMIT}
        while True:
            deleted = await self._store.fetch_all(_QUERIES["delete_old_notices"], values)
            if len(deleted) < DELETE_LIMIT:
                break
            await asyncio.sleep(DELETE_PAUSE_SECONDS)

    async def _apply(self, events: Sequence[Projected], positions: Sequence[ReadPosition]) -> None:
        async with self._store.transaction() as connection:
            for event in events:
                name, values = _statement(event.envelope, event.message)
                await connection.execute(_QUERIES[name], values)
            await put_positions(connection, positions)
        for event in events:
            if isinstance(event.message, Preferred) and event.envelope.requestid:
                self._on_preferences(event.message.user_id, event.envelope.requestid, event.message)


def _check_storable(_: Envelope, message: Message) -> None:
    """Raise `UndecodableError` if Postgres would reject a message."""
    if isinstance(message, Sent | Failed | Skipped) and "\0" in message.title + message.body:
        raise UndecodableError("bad_data", "a text holds a NUL")


def _statement(event: Envelope, message: Event) -> tuple[str, dict[str, Any]]:
    match message:
        case Preferred():
            return "put_preference", message.model_dump()
        case Forgotten():
            return "forget", message.model_dump()
        case Sent() | Failed() | Skipped():
            status = message.TYPE.rpartition(".")[2]
            reason = message.reason if isinstance(message, Skipped) else ""
            return "put_notice", {**message.model_dump(), "status": status, "reason": reason, "settled_at": event.time}
