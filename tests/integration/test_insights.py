"""The insights against real servers: each fact counts once, under crashes, late events and repetitions.

The measure is plain SQL over the event store of the orders and over all other published events, which knows nothing
of how the insights count.
"""

import asyncio
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from contracts import cart, orders, payments
from contracts.envelope import Envelope, Message
from contracts.ids import derive_id
from contracts.insights import FIGURES, FIGURES_REGISTRY, RELATED, RELATED_REGISTRY, Figures, Related
from contracts.inventory import GivenUp, Line, Money
from contracts.topics import Topic
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.failpoints import EXIT_KILLED, FAILPOINTS
from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from order_service.insights import agents, model, store
from order_service.insights.baskets import rule_measures
from order_service.insights.store import MIGRATIONS, STORE_OPTIONS, InsightsStore
from tests.testkit.processes import PATIENCE, Processes, Replica, clean_up, processes
from tests.testkit.servers import PARTITIONS, Servers, partition

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime.now(UTC)
PRODUCTS = [f"P{number}" for number in range(12)]
PublishedEvent = tuple[Topic, Envelope]

# The event store of the orders has their events; those of payments and carts are in a table beside it.
EXPECTED = """
WITH event AS (SELECT DISTINCT ON (order_id, version) type, at, data FROM order_event
               UNION ALL SELECT DISTINCT ON (id) type, at, data FROM told ORDER BY 1),
     figure AS (SELECT date_trunc(by, at) AS start, by, type, data, data->>'user_id' AS user_id
                  FROM event, unnest('{minute,hour,day}'::text[]) AS by),
     present AS (SELECT by, start, user_id, type FROM figure
                  WHERE type IN ('holdfast.cart.held', 'holdfast.orders.committed'))
SELECT by, start, what, currency, sum(amount)::bigint FROM (
    SELECT by, start, name AS what, '' AS currency, 1 AS amount FROM figure JOIN (VALUES
        ('orders.placed', 'orders_placed'), ('orders.committed', 'orders_committed'),
        ('orders.confirmed', 'orders_confirmed'), ('orders.cancelled', 'orders_cancelled'),
        ('payments.captured', 'payments_captured'), ('payments.declined', 'payments_declined'),
        ('payments.refunded', 'payments_refunded'), ('cart.held', 'holds_granted'), ('cart.expired', 'carts_expired'))
        AS named (type, name) ON figure.type = 'holdfast.' || named.type
    UNION ALL SELECT by, start, 'holds_refused', '', 1 FROM figure
               WHERE type = 'holdfast.cart.refused' AND data ? 'product'
    UNION ALL SELECT by, start, 'orders', data->'total'->>'currency', 1 FROM figure
               WHERE type = 'holdfast.orders.committed'
    UNION ALL SELECT by, start, 'ordered', data->'total'->>'currency', (data->'total'->>'amount')::bigint FROM figure
               WHERE type = 'holdfast.orders.committed'
    UNION ALL SELECT by, start, split_part(type, '.', 3), data->'amount'->>'currency',
                     (data->'amount'->>'amount')::bigint FROM figure
               WHERE type IN ('holdfast.payments.captured', 'holdfast.payments.refunded')
    UNION ALL SELECT by, start, 'payments', data->'amount'->>'currency', 1 FROM figure
               WHERE type = 'holdfast.payments.captured'
    UNION ALL SELECT by, start, 'shoppers', '', count(DISTINCT user_id) FROM present GROUP BY by, start
    UNION ALL SELECT by, start, 'buyers', '', count(DISTINCT user_id) FROM present
               WHERE type = 'holdfast.orders.committed' GROUP BY by, start) AS numbers
 GROUP BY by, start, what, currency ORDER BY by, start, what, currency
"""


# ---- what happens in a shop -----------------------------------------------------------------------------------------


def history(seed: int, number: int) -> list[PublishedEvent]:
    """Events of `number` shoppers over three days, in an order in which they could not even have happened."""
    chance = random.Random(seed)
    told: list[PublishedEvent] = []
    for shopper in range(number):
        at = NOW - timedelta(seconds=chance.randrange(3 * 24 * 3600))
        visit = _Visit(chance, f"u{seed}-{shopper % (number // 2 + 1)}", at, f"{chance.getrandbits(64):x}")
        told += visit.told()
    chance.shuffle(told)
    return told


@dataclass
class _Visit:
    """One shopper's way through the shop; its events happen one after the other."""

    chance: random.Random
    user: str
    at: datetime
    name: str

    def told(self) -> Iterator[PublishedEvent]:
        """Return the events of one visit."""
        products = self.chance.sample(PRODUCTS, self.chance.randint(1, 4))
        yield from self._holds(products)
        if self.chance.random() < 0.3:
            lines = tuple(GivenUp(product=product, quantity=1) for product in products)
            version = self.chance.getrandbits(30)
            yield self._of_cart(cart.Expired(user_id=self.user, lines=lines, version=version), "end")
        else:
            yield from self._order(products)

    def _say(self, topic: Topic, message: Message, key: str, id_: str) -> PublishedEvent:
        self.at += timedelta(seconds=self.chance.choice((0, 1, 40, 4000)))
        data = message.model_dump(mode="json", exclude_none=True)
        source = "/" + message.TYPE.split(".")[1]
        return topic, Envelope(id=id_, source=source, type=message.TYPE, subject=key, time=self.at, data=data)

    def _of_cart(self, message: Message, id_: str) -> PublishedEvent:
        return self._say(cart.RESPONSES, message, self.user, f"{self.user}/{self.name}/{id_}")

    def _holds(self, products: Sequence[str]) -> Iterator[PublishedEvent]:
        about: dict[str, Any] = {"user_id": self.user, "quantity": 1, "line_quantity": 1, "expires_at": NOW}
        for product in products:
            if self.chance.random() < 0.2:
                refused = cart.Refused(user_id=self.user, id=f"{self.name}-{product}", product=product, reason="limit")
                yield self._of_cart(refused, f"{product}/refused")
            version, id_ = self.chance.getrandbits(30), f"{self.name}+{product}"
            yield self._of_cart(cart.Held(**about, id=id_, product=product, version=version), f"{product}/held")

    def _order(self, products: Sequence[str]) -> Iterator[PublishedEvent]:
        order_id = derive_id(self.user, self.name, "order")
        head = {"order_id": order_id, "user_id": self.user}
        total = Money(amount=self.chance.randint(100, 9999), currency=self.chance.choice(("GBP", "GBP", "EUR")))

        def of_order(kind: type[Message], version: int, status: str, **more: Any) -> PublishedEvent:
            fields = {**head, "version": version, "status": status, **more}
            return self._say(orders.EVENTS, kind.model_validate(fields), order_id, f"{order_id}/{version}")

        def of_payment(message: Message) -> PublishedEvent:
            return self._say(payments.EVENTS, message, order_id, f"{order_id}/{message.TYPE}")

        yield of_order(orders.Placed, 1, "placed", request_id=self.name)
        if self.chance.random() < 0.1:
            yield self._of_cart(cart.Refused(user_id=self.user, id=self.name, reason="cart_changed"), "refused")
            yield of_order(orders.Cancelled, 2, "cancelled", reason="cart_changed")
            return
        lines = tuple(Line(product=product, quantity=1, price=total) for product in products)
        yield of_order(orders.Committed, 2, "committed", lines=lines, total=total)
        paid = {**head, "payment_id": f"{order_id}-pay"}
        if self.chance.random() < 0.2:
            yield of_payment(payments.Declined(**paid, reason="no funds"))
            yield of_order(orders.Cancelled, 5, "cancelled", reason="declined")
            return
        yield of_payment(payments.Captured(**paid, amount=total))
        yield of_order(orders.Confirmed, 4, "confirmed")
        if self.chance.random() < 0.2:
            yield of_payment(payments.Refunded(**paid, refund_id=f"{order_id}-back", amount=total))
            yield of_order(orders.Cancelled, 8, "cancelled", reason="cancelled", refunded=total)


def related(told: Sequence[PublishedEvent]) -> dict[str, list[tuple[str, float, float, float]]]:
    """Return the products that are bought together, counted in the simplest way."""
    baskets = {
        e.subject: {line["product"] for line in e.data["lines"]} for _, e in told if e.type.endswith("committed")
    }
    for _, event in told:
        if event.type.endswith("orders.cancelled"):
            baskets.pop(event.subject, None)
    number = Counter(product for basket in baskets.values() for product in basket)
    together = Counter(pair for basket in baskets.values() for pair in combinations(sorted(basket), 2))
    found = {}
    for product in sorted(
        {line["product"] for _, e in told if e.type.endswith("committed") for line in e.data["lines"]}
    ):
        others = [(n, *(set(pair) - {product})) for pair, n in together.items() if product in pair]
        kept = [(n, other) for n, other in others if n * len(baskets) >= number[product] * number[other]]
        kept.sort(key=lambda each: (-each[0], number[each[1]], each[1]))
        found[product] = [
            (other, *rule_measures(n, number[product], number[other], len(baskets))) for n, other in kept[:10]
        ]
    return found


# ---- the world ------------------------------------------------------------------------------------------------------


class InsightsService:
    """One process of insights, and hands on the topics and tables."""

    def __init__(self, shop: Processes, replica: Replica) -> None:
        self.shop = shop
        self.replica = replica
        self.told: list[PublishedEvent] = []
        self.told_before = 0

    @property
    def settings(self) -> Settings:
        return self.shop.settings

    async def say(self, told: Sequence[PublishedEvent]) -> None:
        """Write records as their services would, and into the tables that the SQL is asked of."""
        async with producer(self.settings) as out:
            for topic, event in told:
                await out.send(self.settings.topic(topic), event.encode(), event.key, partition=partition(event.key))
            await out.flush()
        self.told += told

    def keep(self) -> None:
        """Put all published events into the event store, and those of other services into a table beside it."""
        with psycopg.connect(self.settings.postgres_url, autocommit=True) as connection:
            connection.execute(f'SET search_path = "{self.settings.schema_name("orders")}"'.encode())
            connection.execute(
                "CREATE TABLE IF NOT EXISTS told (id text PRIMARY KEY, type text, data jsonb, at timestamptz)"
            )
            fresh, self.told_before = self.told[self.told_before :], len(self.told)
            rows = [(e.subject, e.data.get("version"), e.type, orjson.dumps(e.data).decode(), e.time) for _, e in fresh]
            of_orders = [topic == orders.EVENTS for topic, _ in fresh]
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO order_event VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    [row for row, of_order in zip(rows, of_orders, strict=True) if of_order],
                )
                cursor.executemany(
                    "INSERT INTO told VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    [
                        (e.id, *row[2:])
                        for (_, e), row, of_order in zip(fresh, rows, of_orders, strict=True)
                        if not of_order
                    ],
                )

    def sql(self, schema: str, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.settings.postgres_url, options="-c TimeZone=UTC", autocommit=True) as connection:
            connection.execute(f'SET search_path = "{self.settings.schema_name(schema)}"'.encode())
            return connection.execute(query.encode()).fetchall()

    def counted(self) -> list[tuple[Any, ...]]:
        return self.sql(
            "insights", "SELECT by, start, figure, currency, value FROM tally ORDER BY by, start, figure, currency"
        )

    async def read_up(self) -> None:
        """Return when the process has committed everything that there is to read."""
        names = [self.settings.topic(topic) for topic in (orders.EVENTS, payments.EVENTS, cart.RESPONSES)]
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.kafka, group_id=f"{self.settings.prefix}insights", enable_auto_commit=False
        )
        await consumer.start()
        try:
            parts = [TopicPartition(name, number) for name in names for number in range(PARTITIONS)]
            consumer.assign(parts)
            ends = await consumer.end_offsets(parts)
            async with asyncio.timeout(PATIENCE):
                for part in parts:
                    while (await consumer.committed(part) or 0) < ends[part]:
                        await asyncio.sleep(0.1)
        finally:
            await consumer.stop()

    async def published(self) -> tuple[dict[str, Figures], dict[str, Related]]:
        """The last state of each key on the two topics, once the publisher has nothing more to say."""
        untold = (
            "SELECT (SELECT count(*) FROM tally_window WHERE told < version)"
            " + (SELECT count(*) FROM bought, basket_total t WHERE told < changes OR told_of * 10 < t.orders * 9)"
        )
        async with asyncio.timeout(PATIENCE):
            while self.sql("insights", untold) != [(0,)]:
                await asyncio.sleep(0.1)
        figures: dict[str, Figures] = {}
        lists: dict[str, Related] = {}
        for event in await read(self.settings, FIGURES):
            told = FIGURES_REGISTRY.parse(event)
            if told.window not in figures or figures[told.window].version < told.version:
                figures[told.window] = told
        for event in await read(self.settings, RELATED):
            list_ = RELATED_REGISTRY.parse(event)
            if list_.product not in lists or lists[list_.product].version < list_.version:
                lists[list_.product] = list_
        return figures, lists

    async def check(self) -> None:
        """Assert that the figures are those that SQL counts."""
        await self.read_up()
        self.keep()
        expected = self.sql("orders", EXPECTED)
        assert expected, "there is something to compare"
        assert self.counted() == expected

    async def check_published(self) -> None:
        """And so is what was published of it."""
        await self.check()
        expected = self.counted()
        figures, lists = await self.published()
        told = Counter({(f.by, f.start, name): n for f in figures.values() for name, n in _numbers(f)})
        assert told == Counter({(by, start, figure + currency): n for by, start, figure, currency, n in expected})
        wanted = related(self.told)
        assert {product for product, each in lists.items() if each.items} <= wanted.keys() <= set(PRODUCTS)
        orders_now = self.sql("insights", "SELECT orders FROM basket_total")[0][0]
        for product, each in lists.items():
            if each.orders == orders_now:
                found = [(item.product, item.support, item.confidence, item.lift) for item in each.items]
                assert found == wanted.get(product, []), product
            else:
                assert each.orders * 10 >= orders_now * 9, "told of nearly as many orders as there are"
        assert any(each.orders == orders_now for each in lists.values())


def _numbers(figures: Figures) -> Iterator[tuple[str, int]]:
    for name, value in figures.model_dump().items():
        if isinstance(value, int) and value and name != "version":
            yield name, value
    for takings in figures.takings:
        for name in ("orders", "ordered", "captured", "refunded", "payments"):
            if value := getattr(takings, name):
                yield name + takings.currency, value


@asynccontextmanager
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(bootstrap_servers=settings.kafka)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def written(settings: Settings, topic: Topic) -> int:
    """Return how many records were ever written; compaction removes some of those that `read` would count."""
    async with AIOKafkaConsumer(bootstrap_servers=settings.kafka) as reader:
        partitions = [TopicPartition(settings.topic(topic), number) for number in range(PARTITIONS)]
        return sum((await reader.end_offsets(partitions)).values())


async def read(settings: Settings, topic: Topic) -> list[Envelope]:
    """Return all records of a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, auto_offset_reset="earliest")
    await consumer.start()
    try:
        parts = [TopicPartition(settings.topic(topic), number) for number in range(PARTITIONS)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        found = []
        while any([await consumer.position(part) < ends[part] for part in parts]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [Envelope.decode(record.key, record.value) for record in records]
        return found
    finally:
        await consumer.stop()


@pytest.fixture(scope="module")
def world(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InsightsService]:
    settings = servers.settings()
    asyncio.run(postgres.migrate(settings, "orders", ROOT / "order_service" / "migrations"))
    asyncio.run(ensure_topics(settings, [orders.EVENTS, payments.EVENTS, cart.RESPONSES]))
    with processes(servers, settings, tmp_path_factory.mktemp("insights")) as shop:
        [replica] = shop.start("order_service.insights", "insights-1")
        replica.wait_ready()
        yield InsightsService(shop, replica)
    asyncio.run(clean_up(settings))


# ---- the process ----------------------------------------------------------------------------------------------------


async def test_it_counts_what_sql_counts_after_a_kill_and_a_replay(world: InsightsService) -> None:
    told = history(1, 60)
    await world.say(told[: len(told) // 2])
    world.replica.kill()
    await world.say(told[len(told) // 2 :])
    await world.say(told)  # all of it once more, as a replay does
    await world.check_published()
    assert world.replica.exits[:1] == [-signal.SIGKILL]
    before = world.counted()
    await world.say(told)
    await world.check()
    assert world.counted() == before


@pytest.mark.parametrize("point", [point for point in FAILPOINTS if point.startswith("insights.")])
async def test_a_process_that_crashes_at(point: str, world: InsightsService) -> None:
    deaths = len(world.replica.exits)
    world.replica.arm(f"{point}:1")
    number = 0
    async with asyncio.timeout(PATIENCE):
        while len(world.replica.exits) == deaths:
            number += 1
            await world.say(history(list(FAILPOINTS).index(point) * 1000 + number, 6))
            await asyncio.sleep(0.1)
    assert world.replica.exits[deaths:] == [EXIT_KILLED], world.replica.log_tail()
    if point == "insights.published":
        await world.check_published()
    else:
        await world.check()


async def test_metrics_and_dead_letters_of_insights(world: InsightsService) -> None:
    bad = Envelope(id="b", source="/orders", type=orders.Placed.TYPE, subject="o", time=NOW, data={"order_id": "o"})
    foreign = Envelope(id="f", source="/cart", type=cart.Resumed.TYPE, subject="u", time=NOW, data={})
    old = cart.Expired(user_id="old", lines=(), version=1)
    late = Envelope(
        id="l",
        source="/cart",
        type=old.TYPE,
        subject="old",
        time=NOW - timedelta(days=7, minutes=1),
        data=old.model_dump(mode="json"),
    )
    before = world.counted()
    async with producer(world.settings) as out:
        for topic, event in ((orders.EVENTS, bad), (cart.RESPONSES, foreign), (cart.RESPONSES, late)):
            name = world.settings.topic(topic)
            await out.send_and_wait(name, event.encode(), event.key, partition=partition(event.key))
    await world.read_up()
    assert world.counted() == before, "what is too late to tell from a repeat is not counted"
    text = await asyncio.to_thread(_metrics, world.replica)
    assert re.search(r'holdfast_dead_letters_total\{reason="bad_data",topic="[^"]*orders.events.v1"\} 1.0', text), text
    assert "holdfast_insights_too_late_total 1.0" in text


def _metrics(replica: Replica) -> str:
    return httpx.get(f"http://127.0.0.1:{replica.port}/metrics", trust_env=False).text


async def test_all_of_it_is_published_again_on_demand(world: InsightsService) -> None:
    await world.published()
    before = await written(world.settings, FIGURES), await written(world.settings, RELATED)
    done = world.shop.run("order_service.insights", "republish")
    assert done.returncode == 0, done.stderr
    figures, lists = await world.published()
    assert await written(world.settings, FIGURES) >= before[0] + len(figures)
    assert await written(world.settings, RELATED) >= before[1] + len(lists)


# ---- the store ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def connect(settings: Settings) -> AsyncIterator[Any]:
    await postgres.migrate(settings, "insights", MIGRATIONS)
    yield partial(postgres.connect, settings, "insights", options=STORE_OPTIONS)
    async with await postgres.connect(settings, "insights") as connection:
        await connection.execute(f'DROP SCHEMA "{settings.schema_name("insights")}" CASCADE'.encode())


async def test_many_count_the_same_at_once_and_it_counts_once(connect: Any) -> None:
    told = [event for topic, event in history(7, 30) if topic == orders.EVENTS]
    events = [(event, model.ORDER_EVENTS.parse(event)) for event in told if event.type in model.ORDER_EVENTS.types]
    facts = [found for event, message in events if (found := model.to_fact(event, message))]
    stores = [InsightsStore(connect) for _ in range(4)]

    async def work(number: int) -> int:
        chance, fresh = random.Random(number), 0
        mine = list(zip(facts, events, strict=True))
        chance.shuffle(mine)
        for start in range(0, len(mine), 10):
            part = mine[start : start + 10]
            fresh += len((await stores[number].count_facts([each for each, _ in part])).new_facts)
            learning = [m for _, (_, m) in part if isinstance(m, orders.Committed | orders.Cancelled)]
            await stores[number].count_baskets(learning)
        return fresh

    fresh = await asyncio.gather(*(work(number) for number in range(4)))
    assert sum(fresh) == len({each.key for each in facts})
    async with await connect() as connection:
        counted = await (
            await connection.execute("SELECT sum(value) FROM tally WHERE by = 'day' AND figure LIKE 'orders_%'")
        ).fetchone()
        assert counted == (len(facts),)
        lists: dict[str, Related] = {}
        while untold := await store.unpublished_related(connection, 0.0, 5, stale=False):
            assert len(untold) <= 5
            lists |= {each.related.product: each.related for each in untold}
            await store.mark_related_published(connection, untold)
    wanted = {p: each for p, each in related([(orders.EVENTS, event) for event in told]).items() if each}
    learnt = {
        p: [(i.product, i.support, i.confidence, i.lift) for i in each.items] for p, each in lists.items() if each.items
    }
    assert learnt == wanted
    for each in stores:
        await each.close()


async def test_a_wholesale_order_is_counted_by_parts(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    price = Money(amount=1, currency="GBP")

    def order(number: int, *products: str) -> orders.Committed:
        lines = tuple(Line(product=product, quantity=1, price=price) for product in products)
        return orders.Committed(
            order_id=f"o{number}", user_id="u", version=2, status="committed", lines=lines, total=price
        )

    monkeypatch.setattr(store, "MAX_PAIRS_PER_TRANSACTION", 3)
    keeping = InsightsStore(connect)
    parts: list[int] = []
    learn = keeping._count_baskets

    async def noted(part: Sequence[orders.Committed | orders.Cancelled]) -> None:
        parts.append(len(part))
        await learn(part)

    monkeypatch.setattr(keeping, "_count_baskets", noted)
    await keeping.count_baskets(
        [order(1, "A", "B"), order(2, *"ABC"), order(3, *"ABCDE"), order(4, "A"), order(5, "A")]
    )
    assert parts == [1, 1, 1, 2]
    async with await connect() as connection:
        [alone] = [
            u for u in await store.unpublished_related(connection, 0.5, 10, stale=False) if u.related.product == "B"
        ]
        assert [item.product for item in alone.related.items] == ["A"], "C is in two of five, which is less than half"
        assert alone.related.orders == 5
    await keeping.close()


async def test_lists_are_published_again_after_many_more_orders(connect: Any) -> None:
    price = Money(amount=1, currency="GBP")

    def order(number: int, *products: str) -> orders.Committed:
        lines = tuple(Line(product=product, quantity=1, price=price) for product in products)
        return orders.Committed(
            order_id=f"o{number}", user_id="u", version=2, status="committed", lines=lines, total=price
        )

    keeping = InsightsStore(connect)
    async with await connect() as connection:
        await keeping.count_baskets([order(number, "A", "B") for number in range(9)])
        first = await store.unpublished_related(connection, 0.0, 10, stale=False)
        await store.mark_related_published(connection, first)
        assert await store.unpublished_related(connection, 0.0, 10, stale=True) == []
        await keeping.count_baskets([order(10, "C")])
        await store.mark_related_published(
            connection, await store.unpublished_related(connection, 0.0, 10, stale=False)
        )
        assert await store.unpublished_related(connection, 0.0, 10, stale=True) == [], "nine of ten is near enough"
        await keeping.count_baskets([order(11, "C")])
        await store.mark_related_published(
            connection, await store.unpublished_related(connection, 0.0, 10, stale=False)
        )
        again = await store.unpublished_related(connection, 0.0, 10, stale=True)
        assert {each.related.product for each in again} == {"A", "B"}
        assert [each.related.items[0].support for each in again] == [9 / 11, 9 / 11]
        assert all(new.related.version > old.related.version for old, new in zip(first, again, strict=True))
        await store.mark_related_published(connection, again)
        assert await store.unpublished_related(connection, 0.0, 10, stale=True) == []
    await keeping.close()


async def test_keys_are_forgotten_when_they_can_no_longer_come_again(connect: Any) -> None:
    keeping = InsightsStore(connect)
    facts = [
        model.Fact(("x", str(days)), NOW - timedelta(days=days), timedelta(days=7), {"holds_granted": 1}, shopper="u")
        for days in (0, 6, 7, 9)
    ]
    await keeping.count_facts(facts)
    async with await connect() as connection:
        gone = await store.delete_expired_keys(connection, agents.MAX_KEYS_PER_DELETE)
        assert gone == 4, "one fact, and its shopper in three windows"
        assert await store.delete_expired_keys(connection, agents.MAX_KEYS_PER_DELETE) == 0
    assert (await keeping.count_facts(facts)).duplicates == 3
    await keeping.close()
