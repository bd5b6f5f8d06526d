"""The read model of what the insights have learnt: related products, and figures by window. Nothing waits for it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aiokafka import ConsumerRecord

from infrastructure import metrics
from infrastructure.envelope import Envelope, Undecodable
from infrastructure.postgres import load_queries
from infrastructure.settings import Settings
from order_service.insights.messages import (
    FIGURES,
    FIGURES_VOCABULARY,
    RELATED,
    RELATED_VOCABULARY,
    By,
    Figures,
    Related,
    RelatedProduct,
)
from rest_api.follower import Follower, Polled
from rest_api.store import HERE, Position, Shown, Store, put_positions

log = logging.getLogger(__name__)

_QUERIES: Final = load_queries(HERE / "insight_queries.sql")
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class BoughtTogether:
    """A product of the catalogue, and how it goes with the one that was asked about."""

    product: Shown
    measures: RelatedProduct


class Insights:
    """One follower of two topics, and their rows in the edge's schema. Reading raises `store.AWAY` when it is away."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._related = settings.topic(RELATED)
        self._follower = Follower(settings, store, "insights", (RELATED, FIGURES))

    async def run(self) -> None:
        """Read on from where the store is, for ever. Raises when Kafka or Postgres is away: run it again."""
        positions = await self._store.positions(self._follower.names)
        await self._follower.run(positions, self._take)

    async def related(self, product: str) -> list[BoughtTogether]:
        """What is bought together with a product, most often first; nothing for one that nobody has ordered yet."""
        rows = await self._store.rows(_QUERIES["related"], {"product": product})
        return [
            BoughtTogether(
                Shown(*shown), RelatedProduct(product=shown[0], support=support, confidence=confidence, lift=lift)
            )
            for *shown, support, confidence, lift in rows
        ]

    async def figures(
        self, by: By, since: datetime, until: datetime, *, limit: int, after: datetime | None
    ) -> list[Figures]:
        """The first `limit` windows that begin in a span of time, later than `after`; those without events are not."""
        values = {"by": by, "from": since, "to": until, "after": after or BEGINNING, "limit": limit}
        return [Figures.model_validate_json(data) for (data,) in await self._store.rows(_QUERIES["figures"], values)]

    async def _take(self, polled: Polled, positions: list[Position]) -> None:
        related: dict[str, Related] = {}
        figures: dict[str, Figures] = {}
        for records in polled.values():
            for record in records:
                self._read(record, related, figures)
        async with self._store.transaction() as connection:
            if related:
                await connection.execute(_QUERIES["put_related"], _related_columns(list(related.values())))
            if figures:
                await connection.execute(_QUERIES["put_figures"], _figures_columns(list(figures.values())))
            await put_positions(connection, positions)

    def _read(self, record: ConsumerRecord, related: dict[str, Related], figures: dict[str, Figures]) -> None:
        try:
            event = Envelope.decode(record.key, record.value)
            if record.topic == self._related:
                told = RELATED_VOCABULARY.parse(event)
                if told.product not in related or related[told.product].version < told.version:
                    related[told.product] = told
            else:
                window = FIGURES_VOCABULARY.parse(event)
                if window.window not in figures or figures[window.window].version < window.version:
                    figures[window.window] = window
        except Undecodable as error:
            metrics.IGNORED.labels(record.topic).inc()
            log.warning("%s %s/%s: %s", record.topic, record.partition, record.offset, error)


def _related_columns(told: Sequence[Related]) -> dict[str, list[object]]:
    return {
        "product": [each.product for each in told],
        "version": [each.version for each in told],
        "items": ["[" + ",".join(item.model_dump_json() for item in each.items) + "]" for each in told],
    }


def _figures_columns(told: Sequence[Figures]) -> dict[str, list[object]]:
    return {
        "by": [each.by for each in told],
        "start": [each.start for each in told],
        "version": [each.version for each in told],
        "data": [each.model_dump_json() for each in told],
    }
