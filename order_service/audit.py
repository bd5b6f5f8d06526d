"""Counts the orders again: are the streams whole, is the read side what they come to, does the money balance?

It reads one snapshot and changes nothing, so it may run beside a busy shop.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import orjson
from psycopg.rows import dict_row

from infrastructure import clock
from infrastructure.audit_topics import Judged, Place, Window, named, place_of, shown
from infrastructure.auditor import Check, snapshot
from infrastructure.history import kept
from infrastructure.postgres import Connection
from infrastructure.settings import Settings
from order_service import messages as orders
from order_service.state import BrokenStream, Order, evolve
from order_service.store import QUERIES, folded, read_event

CHECKS: Final = (
    "streams_with_gaps",
    "read_side_that_differs",
    "money_that_differs",
    "ends_that_are_none",
    "overdue",
    "not_published",
    "never_placed",
)


@dataclass(slots=True)
class Told:
    """What was read of the topics: the orders that were to be placed, and the events as others heard of them."""

    requests: Judged[orders.Request]
    events: Judged[orders.Event]
    placed: dict[str, Place] = field(default_factory=dict)
    heard: dict[tuple[str, int], bytes] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)

    def request(self, record: Any) -> None:
        """A record of `orders.requests`."""
        if (read := self.requests.parse(record)) is not None:
            event, message = read
            window = self.requests.window
            if isinstance(message, orders.Place) and window.covers(record) and window.remembers(event):
                self.placed[message.order_id] = place_of(record)

    def event(self, record: Any) -> None:
        """A record of `orders.events`."""
        if (read := self.events.parse(record)) is not None:
            _, message = read
            said = _hashed(message)
            if self.heard.setdefault((message.order_id, message.version), said) != said:
                self.differing.append(f"order {message.order_id}: version {message.version} was told in two ways")

    def stored(self, event: orders.Event) -> None:
        """An event of the store, to be held against what was heard."""
        self.placed.pop(event.order_id, None)
        heard = self.heard.pop((event.order_id, event.version), None)
        if heard is not None and heard != _hashed(event):
            self.differing.append(f"order {event.order_id}: version {event.version} was told otherwise than it was")

    def violations(self) -> list[list[str]]:
        """Sentences, by kind; ask when the whole store was held against it."""
        letters = self.requests.letters
        return [
            self.requests.neither_read_nor_put_aside(),
            self.differing,
            [f"order {order_id}: version {version} was told, and is not stored" for order_id, version in self.heard],
            [
                f"order {order_id} ({named(place)}) was to be placed, and is not there"
                for order_id, place in self.placed.items()
                if place not in letters
            ],
        ]


async def read_topics(settings: Settings, grace: timedelta) -> Told:
    """Read what is kept, up to what there is now; raises `BrokerAwayError`."""
    window = Window(clock.now(), grace, orders.REQUESTS.retention or timedelta.max)
    told = Told(
        Judged(settings.topic(orders.REQUESTS), orders.REQUEST_VOCABULARY, window),
        Judged(settings.topic(orders.EVENTS), orders.EVENT_VOCABULARY, window, ignores_unknown=True),
    )
    readers = {
        told.requests.name: told.request,
        settings.topic(orders.REQUESTS.dead_letters): told.requests.letter,
        told.events.name: told.event,
    }
    async for record in kept(settings, readers):
        readers[record.topic](record)
    return told


async def audit(connection: Connection, grace: timedelta, told: Told | None = None) -> dict[str, Any]:
    """`{"ok", "violations": [sentence], "digest", "figures": {name: count}}`.

    The digest is a SHA-256 over all events without their times: no replay changes it. `told` was read before this is
    called, so that whatever stands on the topics is in the tables by now.
    """
    async with snapshot(connection):
        violations = await checks(grace)(connection)
        computed, digest, broken = await _fold_all(connection, told)
        differing = [
            f"order {row[0]}: the read side says {row[1:]}, which is not what its events come to"
            async for row in _rows(connection, "read_side")
            if computed.pop(row[0], b"") != _hashed_row(row)
        ]
        violations += shown(broken) + shown(differing)
        violations += shown([f"order {order_id} is not on the read side" for order_id in computed])
        async with connection.cursor(row_factory=dict_row) as cursor:
            figures = dict(await (await cursor.execute(QUERIES["figures"])).fetchone() or {})
    if told is not None:
        violations += [sentence for kind in told.violations() for sentence in shown(kind)]
        figures["order_dead_letters"] = len(told.requests.letters)
    return {"ok": not violations, "violations": violations, "digest": digest, "figures": figures}


def checks(grace: timedelta) -> Check:
    """What the tables can be asked in SQL; waiting for no longer than `grace` is no violation."""
    return partial(_violations, grace=grace)


async def _violations(connection: Connection, *, grace: timedelta) -> list[str]:
    found = []
    for check in CHECKS:
        values = {"grace": grace} if "%(grace)s" in QUERIES[check] else None
        rows = await (await connection.execute(QUERIES[check], values)).fetchall()
        found += shown([row[0] for row in rows])
    return found


async def _fold_all(connection: Connection, told: Told | None) -> tuple[dict[str, bytes], str, list[str]]:
    """What each order's events come to, hashed; the digest of them all; and which streams can't be folded."""
    computed: dict[str, bytes] = {}
    broken: list[str] = []
    digest = hashlib.sha256()
    order: Order | None = None
    async for order_id, version, type_, data, at in _rows(connection, "all_events"):
        digest.update(orjson.dumps([order_id, version, type_, orjson.loads(data)], option=orjson.OPT_SORT_KEYS) + b"\n")
        event = read_event(type_, data)
        if told is not None:
            told.stored(event)
        try:
            order = evolve(order if order and order.order_id == order_id else None, event, at)
        except BrokenStream as error:
            broken.append(str(error))
            order = None
        else:
            computed[order_id] = _hashed_row(folded(order))
    return computed, digest.hexdigest(), broken


async def _rows(connection: Connection, name: str) -> AsyncIterator[tuple[Any, ...]]:
    async with connection.cursor(name) as cursor:
        await cursor.execute(QUERIES[name])
        async for row in cursor:
            yield row


def _hashed(event: orders.Event) -> bytes:
    return hashlib.blake2b(event.model_dump_json().encode(), digest_size=8).digest()


def _hashed_row(row: tuple[Any, ...]) -> bytes:
    said = [value.timestamp() if isinstance(value, datetime) else value for value in row]
    return hashlib.blake2b(orjson.dumps(said), digest_size=8).digest()
