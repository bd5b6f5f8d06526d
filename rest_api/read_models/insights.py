"""The read model of insights: related products, and figures by window. No request waits for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from contracts.insights import (
    FIGURES,
    FIGURES_REGISTRY,
    RELATED,
    RELATED_REGISTRY,
    Figures,
    Related,
    RelatedProduct,
    WindowUnit,
)
from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import load_queries
from rest_api.read_models.projector import Event, Projector, Topics, newest
from rest_api.read_models.store import SQL_FOLDER, ProductRow, ReadPosition, Store, put_positions

_QUERIES: Final = load_queries(SQL_FOLDER / "insight_queries.sql")
EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RelatedRow:
    """A product of the catalogue, and the measures of how often it is bought with another one."""

    product: ProductRow
    measures: RelatedProduct


class InsightReadModel:
    """Consumer of two topics, and queries of their rows in the edge's schema.

    Queries raise one of `store.UNAVAILABLE_ERRORS` if Postgres is unavailable.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        topics: Topics = {RELATED: RELATED_REGISTRY, FIGURES: FIGURES_REGISTRY}
        self._projector = Projector(settings, store, "insights", topics, self._apply)

    async def run(self) -> None:
        """Read from the stored positions, indefinitely. Raises when Kafka or Postgres is unavailable; run it again."""
        await self._projector.run()

    async def related_products(self, product: str) -> list[RelatedRow]:
        """Return the products bought together with a product, most often first; none if it was never ordered."""
        rows = await self._store.fetch_all(_QUERIES["related"], {"product": product})
        return [
            RelatedRow(
                ProductRow(*shown), RelatedProduct(product=shown[0], support=support, confidence=confidence, lift=lift)
            )
            for *shown, support, confidence, lift in rows
        ]

    async def figures(
        self, by: WindowUnit, since: datetime, until: datetime, *, limit: int, after: datetime | None
    ) -> list[Figures]:
        """Return `limit` windows that begin in a span of time and later than `after`, less those without events."""
        values = {"by": by, "from": since, "to": until, "after": after or EARLIEST, "limit": limit}
        return [
            Figures.model_validate_json(data) for (data,) in await self._store.fetch_all(_QUERIES["figures"], values)
        ]

    async def _apply(self, events: Sequence[Event], positions: Sequence[ReadPosition]) -> None:
        messages = [event.message for event in events]
        related = newest((each for each in messages if isinstance(each, Related)), lambda each: each.product)
        figures = newest((each for each in messages if isinstance(each, Figures)), lambda each: each.window)
        async with self._store.transaction() as connection:
            if related:
                await connection.execute(_QUERIES["put_related"], _related_columns(list(related.values())))
            if figures:
                await connection.execute(_QUERIES["put_figures"], _figures_columns(list(figures.values())))
            await put_positions(connection, positions)


def _related_columns(messages: Sequence[Related]) -> dict[str, list[object]]:
    return {
        "product": [each.product for each in messages],
        "version": [each.version for each in messages],
        "items": ["[" + ",".join(item.model_dump_json() for item in each.items) + "]" for each in messages],
    }


def _figures_columns(messages: Sequence[Figures]) -> dict[str, list[object]]:
    return {
        "by": [each.by for each in messages],
        "start": [each.start for each in messages],
        "version": [each.version for each in messages],
        "data": [each.model_dump_json() for each in messages],
    }
