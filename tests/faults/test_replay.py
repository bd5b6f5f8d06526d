"""Every way to feed a topic back to itself, and to redrive dead letters: nothing that was decided changes.

Each way is followed by an audit whose digest must be the one from before, and by a hundred new requests; then each
earlier client has the same cart, until the same time, and the same orders. The effect of a replay on notices and
figures is seen in `tests/integration/test_notification_mails.py` and `test_insights.py`: this shop runs without them.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka import Producer

from contracts.envelope import rfc3339
from infrastructure.local.commands.dead_letters import DeadLetterEntry, load_dead_letters
from infrastructure.local.state import Root
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.settings import Settings
from load.client import Shopper
from load.http_client import Guest
from load.http_client import ShopClient as Edge
from tests.testkit.foreign_records import event
from tests.testkit.servers import PARTITIONS, partition
from tests.testkit.shop import Shop, product_code

HOLDFAST = [sys.executable, "-m", "infrastructure.local"]
TOPICS = {
    "cart.requests.v1": 80,
    "inventory.requests.v1": 80,
    "inventory.responses.v1": 80,
    "cart.responses.v1": 80,
    "orders.requests.v1": 6,
    "orders.events.v1": 16,
    "payments.requests.v1": 2,
    "payments.events.v1": 2,
    "deliveries.requests.v1": 1,
    "deliveries.events.v1": 3,
}
"""All topics of requests and events of this shop, and how many records of our shoppers they have at the least."""
READ_BY = {
    "cart": ("cart.requests.v1", "inventory.responses.v1"),
    "inventory": ("inventory.requests.v1",),
    "orders": ("orders.requests.v1", "inventory.responses.v1", "payments.events.v1", "deliveries.events.v1"),
    "payment": ("payments.requests.v1",),
    "delivery": ("deliveries.requests.v1",),
}
"""Services and the topics that they read."""
ADDRESS = {"name": "Fay", "line1": "1 High Street", "city": "York", "postal_code": "YO1 7HH", "country": "GB"}


@dataclass
class History:
    """A shop with a history of shoppers and orders, before a replay."""

    shop: Shop
    product: str
    kafka: str
    began: datetime
    guests: set[Guest]
    orders: set[str]
    database: str

    @property
    def users(self) -> set[str]:
        """The ids of our shoppers."""
        return {guest.user_id for guest in self.guests}

    async def audit(self) -> str:
        """The digest of an audit that finds nothing wrong."""
        done = await asyncio.to_thread(self.shop.holdfast, "audit", "--json", check=False)
        report = json.loads(done.stdout)
        assert report["violations"] == []
        return str(report["digest"])

    async def seen(self, guests: Collection[Guest]) -> dict[str, Any]:
        """The carts and orders as shoppers see them, and the rows of their carts: number of changes, and expiry."""

        async def of(edge: Edge, guest: Guest) -> Any:
            return await edge.get("/v1/cart", guest.token), await edge.list_all("/v1/orders?limit=100", guest.token)

        users = sorted(guest.user_id for guest in guests)
        async with Edge(self.shop.http_url) as edge:
            shown = dict(zip(guests, await asyncio.gather(*(of(edge, guest) for guest in guests)), strict=True))
        with psycopg.connect(self.database) as database:
            query = """
                SELECT user_id, revision, first_held_at, expires_at
                  FROM inventory.holder WHERE user_id = ANY(%s) ORDER BY user_id"""
            rows = database.execute(query, [users]).fetchall()
        return {"holders": rows, **{guest.user_id: told for guest, told in shown.items()}}

    async def at_rest(self) -> None:
        """Return when the workers have read everything, replayed records included, and publish nothing more."""
        async with self.looking() as (admin, reader), asyncio.timeout(60):
            # A worker commits what it has read when the resulting records are on the next topic. They lead to each
            # other in rings, so one look may miss what is on its way behind it; nothing goes round twice.
            while not (await self._all_read(admin, reader) and await self._all_read(admin, reader)):
                await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[tuple[AIOKafkaAdminClient, AIOKafkaConsumer]]:
        """Open the clients that know committed offsets, and the beginning and end of topics."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        reader = AIOKafkaConsumer(bootstrap_servers=self.kafka)
        await admin.start()
        await reader.start()
        try:
            yield admin, reader
        finally:
            await reader.stop()
            await admin.close()

    @staticmethod
    async def _all_read(admin: AIOKafkaAdminClient, reader: AIOKafkaConsumer) -> bool:
        for group, topics in READ_BY.items():
            places = _places(topics)
            committed = await admin.list_consumer_group_offsets(group)
            ends = await reader.end_offsets(places)
            if not all(ends[p] == 0 or (p in committed and committed[p].offset >= ends[p]) for p in places):
                return False
        return True

    async def go_on(self) -> None:
        """A hundred new requests of five shoppers."""

        async def shop(edge: Edge) -> None:
            async with Shopper(edge, await edge.create_guest()) as shopper:
                self.guests.add(shopper.guest)
                for quantity in range(1, 21):
                    held = await shopper.request("set", product=self.product, quantity=quantity, seconds=30)
                    assert (held["type"], held["line_quantity"]) == ("held", quantity)
                cart = await shopper.request("cart")
                assert [(line["product"], line["quantity"]) for line in cart["lines"]] == [(self.product, 20)]

        async with Edge(self.shop.http_url) as edge:
            await asyncio.gather(*(shop(edge) for _ in range(5)))

    async def lying(self, topic: str) -> list[tuple[bytes, bytes]]:
        """The records of our shoppers and their orders on a topic."""
        ours = {each.encode() for each in self.users | self.orders}
        return [(r.key, r.value) async for r in read_topic(Settings(kafka=self.kafka), [topic]) if r.key in ours]

    def produce(self, topic: str, records: Sequence[tuple[bytes, bytes]], *, default: bool = False) -> None:
        """Send records as librdkafka does: where Java would, or where its own default partitioner says."""
        producer = Producer({"bootstrap.servers": self.kafka})
        for key, value in records:
            producer.produce(topic, value, key, partition=-1 if default else partition(key))
            producer.poll(0)
        assert producer.flush(30) == 0

    async def responses(self, user: str, request_id: str) -> list[dict[str, Any]]:
        """Return the answers of inventory to a request, with repetitions."""
        events = [
            json.loads(value) for key, value in await self.lying("inventory.responses.v1") if key == user.encode()
        ]
        return [each["data"] for each in events if each["requestid"] == request_id]

    async def letters(self, user: str) -> list[DeadLetterEntry]:
        """The dead letters of a shopper's records, the settled ones among them."""
        found = await load_dead_letters(Settings(kafka=self.kafka))
        return [entry for entry in found.entries if entry.key == user.encode()]

    async def until_letters(self, user: str, number: int) -> list[DeadLetterEntry]:
        """Return the dead letters of a shopper's records, once there are `number`."""
        async with asyncio.timeout(30):
            while len(found := await self.letters(user)) < number:
                await asyncio.sleep(0.1)
        return found


def _places(topics: Sequence[str]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]


def old(user: str, type_: str, product: str, **fields: Any) -> tuple[bytes, bytes]:
    """A request that was accepted eight days ago."""
    then = (datetime.now(UTC) - timedelta(days=8)).isoformat()
    data = {"user_id": user, "product": product, "quantity": 1, **fields.pop("data", {})}
    return user.encode(), json.dumps(event(type_, subject=user, time=then, data=data, **fields)).encode()


async def live(history: History) -> None:
    """Some of everything: many requests, refusals, removals, an expiry, one id twice, what came too late, orders."""
    product = history.product
    async with Edge(history.shop.http_url) as edge:
        ann, bob, carl, eve, fay, gus, hal = guests = await edge.create_guests(7)
        history.guests |= {*guests}
        async with Shopper(edge, ann) as shopper:
            for number in range(70):  # more than are remembered anywhere but in the log
                assert (await shopper.request("set", product=product, quantity=1 + number % 7))["type"] == "held"
            assert (await shopper.request("set", product=product, quantity=999))["reason"] == "out_of_stock"
        async with Shopper(edge, bob) as one, Shopper(edge, carl) as other:
            assert (await one.request("add", id_="same", product=product, quantity=3))["line_quantity"] == 3
            assert (await other.request("add", id_="same", product=product, quantity=4))["line_quantity"] == 4
            assert (await other.request("add", id_="same", product=product, quantity=5))["code"] == "id_reused"
            assert (await other.request("clear"))["type"] == "removed"
            assert (await one.request("remove", product=product))["type"] == "removed"
            assert (await one.request("add", product=product, quantity=2))["line_quantity"] == 2
        async with Shopper(edge, eve) as shopper:
            await shopper.request("add", product=product, quantity=2)
            with psycopg.connect(history.database) as database:
                database.execute(
                    "UPDATE inventory.holder SET expires_at = now() - interval '1 second' WHERE user_id = %s",
                    [eve.user_id],
                )
            while (await shopper.request("cart"))["lines"]:
                await asyncio.sleep(0.2)
        async with Shopper(edge, fay) as one, Shopper(edge, gus) as two, Shopper(edge, hal) as three:
            await asyncio.gather(buy(history, edge, one), fail_to_pay(history, edge, two), regret(history, edge, three))
        history.produce("cart.requests.v1", [old(ann.user_id, "cart.add", product, requestid="late")])
        by_hand = old(ann.user_id, "inventory.hold", product, requestid="later", source="/cart", data={"mode": "add"})
        history.produce("inventory.requests.v1", [by_hand])
    await history.at_rest()
    for request_id in ("late", "later"):
        (told,) = await history.responses(ann.user_id, request_id)
        assert (told["outcome"]["type"], told["outcome"]["reason"]) == ("refused", "expired")


async def order(history: History, shopper: Shopper, token: str, **what: Any) -> str:
    """Order the cart at a `version`, or `items`; the order's id."""
    to: dict[str, Any] = {"address": ADDRESS, "contact": {"email": "fay@example.org"}, "payment": {"token": token}}
    order_id = str((await shopper.request("checkout", **what, **to))["order_id"])
    history.orders.add(order_id)
    return order_id


async def until(edge: Edge, shopper: Shopper, order_id: str, *wanted: str) -> Mapping[str, Any]:
    """The order as its shopper sees it, once it is one of `wanted`."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(LookupError):  # an order from a socket is read a hop later
                shown = await edge.get(f"/v1/orders/{order_id}", shopper.guest.token)
                if shown["status"] in wanted:
                    return shown
            await asyncio.sleep(0.2)


async def buy(history: History, edge: Edge, shopper: Shopper) -> None:
    """An order that is paid late, and whose money is asked back before it has come: that is refused, for good."""
    user = shopper.guest.user_id
    order_id = await order(history, shopper, "tok_late", items=[{"product": history.product, "quantity": 1}])
    wanted = event(
        "orders.refund", subject=order_id, requestid="too soon", data={"user_id": user, "order_id": order_id}
    )
    history.produce("orders.requests.v1", [(order_id.encode(), json.dumps(wanted).encode())])
    await until(edge, shopper, order_id, "delivered")
    told = [json.loads(value) for key, value in await history.lying("cart.responses.v1") if key == user.encode()]
    assert [each["data"]["reason"] for each in told if each["requestid"] == "too soon"] == ["not_paid"]


async def fail_to_pay(history: History, edge: Edge, shopper: Shopper) -> None:
    """An order whose payment is declined: the cart has its lines back."""
    held = await shopper.request("add", product=history.product, quantity=2)
    order_id = await order(history, shopper, "tok_decline", version=held["version"])
    assert (await until(edge, shopper, order_id, "cancelled"))["reason"] == "declined"
    async with asyncio.timeout(30):
        while not (lines := (await shopper.request("cart"))["lines"]):
            await asyncio.sleep(0.2)
    assert [(line["product"], line["quantity"]) for line in lines] == [(history.product, 2)]


async def regret(history: History, edge: Edge, shopper: Shopper) -> None:
    """An order that its shopper wants no more, at once."""
    order_id = await order(history, shopper, "tok_approve", items=[{"product": history.product, "quantity": 3}])
    await until(edge, shopper, order_id, "placed", "committed", "paid", "confirmed")
    asked = await edge.request("POST", f"/v1/orders/{order_id}/cancel", token=shopper.guest.token)
    assert asked.status == 202, asked
    assert (await until(edge, shopper, order_id, "cancelled"))["reason"] == "cancelled"


@pytest.fixture(scope="module")
def history(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> History:
    """A shop with a history. No cart will expire meanwhile: a cart lives for a quarter of an hour."""
    database, product = shop.postgres_url, product_code("REPLAY")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "UPDATE inventory.holder SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL"
        )
        query = "SELECT count(*) FROM inventory.holder WHERE expires_at IS NOT NULL"
        shop.until(lambda: connection.execute(query).fetchone() == (0,), patience=60)
    shop.seed([(product, "Played again", 100, 900)], tmp_path_factory.mktemp("replay"))
    history = History(shop, product, shop.status()["kafka"], datetime.now(UTC), set(), set(), database)
    asyncio.run(live(history))
    return history


# ---- four ways ------------------------------------------------------------------------------------------------------


async def reset_the_offsets(history: History) -> None:
    """Kafka's own tool makes the workers read everything again. It insists that nobody is at work meanwhile."""
    shop = history.shop
    services = shop.status()["services"]
    workers = [
        psutil.Process(each["pid"])
        for name, each in services.items()
        if name.startswith(tuple(f"{g}-" for g in READ_BY))
    ]
    supervisor = psutil.Process(Root(shop.root).supervisor_pid())
    supervisor.suspend()  # it would start them again
    try:
        for worker in workers:
            worker.kill()
        admin = AIOKafkaAdminClient(bootstrap_servers=history.kafka)
        await admin.start()
        try:
            async with asyncio.timeout(30):  # static members are forgotten when their session is over
                while not all([await _empty(admin, group) for group in READ_BY]):
                    await asyncio.sleep(0.3)
        finally:
            await admin.close()
        groups = [word for group in READ_BY for word in ("--group", group)]
        reset = ("--reset-offsets", "--to-earliest", "--all-topics", "--execute")
        done = await asyncio.to_thread(shop.holdfast, "kafka", "consumer-groups", *groups, *reset)
        assert all(topic in done.stdout for topics in READ_BY.values() for topic in topics)
        await _nothing_is_read(history)
    finally:
        supervisor.resume()
    await asyncio.to_thread(shop.until, lambda: not any(worker.is_running() for worker in workers))
    await asyncio.to_thread(shop.wait_ready)


async def _nothing_is_read(history: History) -> None:
    """Every group begins at the beginning of each partition that holds a record."""
    async with history.looking() as (admin, reader):
        for group, topics in READ_BY.items():
            places = _places(topics)
            committed = await admin.list_consumer_group_offsets(group)
            first, end = await reader.beginning_offsets(places), await reader.end_offsets(places)
            written = {place: at for place, at in first.items() if end[place] > at}
            assert written == {place: committed[place].offset for place in written}


async def _empty(admin: AIOKafkaAdminClient, group: str) -> bool:
    (answer,) = await admin.describe_consumer_groups([group])
    return bool(answer.groups[0][2] == "Empty")


async def our_own_command(history: History) -> None:
    async def replay(topic: str) -> None:
        since = ("--from", rfc3339(history.began))
        listed = await asyncio.to_thread(history.shop.holdfast, "replay", topic, *since, "--dry-run", "--json")
        done = await asyncio.to_thread(history.shop.holdfast, "replay", topic, *since, "--json")
        assert json.loads(done.stdout)["sent"] >= json.loads(listed.stdout)["matched"] >= TOPICS[topic]

    await asyncio.gather(*(replay(topic) for topic in TOPICS))


async def kafkas_own_tools(history: History) -> None:
    async def tool(*words: str, given: str = "") -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            [*HOLDFAST, "kafka", *words],
            input=given,
            encoding="utf-8",
            errors="surrogateescape",  # other tests leave any bytes on the topics
            env=history.shop.environment,
            capture_output=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    there = {each["topic"]: each["records"] for each in json.loads(history.shop.holdfast("topics", "--json").stdout)}

    async def replay(topic: str) -> None:
        everything = ("--from-beginning", "--max-messages", str(there[topic]), "--property", "print.key=true")
        read = await tool("console-consumer", "--topic", topic, *everything)
        keys = history.users | history.orders
        ours = [line for line in read.splitlines(keepends=True) if line.partition("\t")[0] in keys]
        assert len(ours) >= TOPICS[topic]
        await tool("console-producer", "--topic", topic, "--property", "parse.key=true", given="".join(ours))

    await asyncio.gather(*(replay(topic) for topic in TOPICS))


async def librdkafkas_default_partitioner(history: History) -> None:
    for topic, least in TOPICS.items():
        records = await history.lying(topic)
        assert len(records) >= least
        history.produce(topic, records, default=True)


WAYS: list[Callable[[History], Awaitable[None]]] = [
    reset_the_offsets,  # first, since it reads everything there is
    our_own_command,
    kafkas_own_tools,
    librdkafkas_default_partitioner,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_replay_of_every_topic_changes_nothing(
    history: History, way: Callable[[History], Awaitable[None]]
) -> None:
    old = {*history.guests}
    before, seen = await history.audit(), await history.seen(old)
    await way(history)
    await history.at_rest()
    assert await history.audit() == before
    await history.go_on()
    assert await history.seen(old) == seen


# ---- dead letters ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing(history: History, table: str, check: str) -> Iterator[psycopg.Connection[Any]]:
    """Every write to `table` fails for good that does not pass `check`."""
    with psycopg.connect(history.database, autocommit=True) as database:
        database.execute(f"ALTER TABLE {table} ADD CONSTRAINT planted CHECK ({check}) NOT VALID".encode())
        try:
            yield database
        finally:
            database.execute(f"ALTER TABLE {table} DROP CONSTRAINT planted".encode())


async def test_a_permanent_failure_keeps_its_answer_after_the_cause_is_gone(history: History, tmp_path: Path) -> None:
    shop, product = history.shop, product_code("FAILS")
    shop.seed([(product, "Cannot be held", 100, 5)], tmp_path)
    async with Edge(shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        user = shopper.guest.user_id
        history.guests.add(shopper.guest)
        with failing(history, "inventory.hold", f"product_code <> '{product}'"):
            refused = await shopper.request("add", id_="f1", product=product, quantity=2)
            assert refused["reason"] == "failed"
            (letter,) = await history.until_letters(user, 1)
        assert (letter.reason, letter.topic, letter.event_ids[1]) == ("failed", "inventory.requests.v1", "f1")
        assert (await shopper.request("add", id_="f2", product=product, quantity=1))["type"] == "held"  # it is repaired
        before = await history.audit()
        for expected in (1, 0):
            done = await asyncio.to_thread(shop.holdfast, "dlq", "redrive", "--key", user, "--json")
            assert json.loads(done.stdout)["redriven"] == expected
        await history.at_rest()
        first, again = await history.responses(user, "f1")
        failed = {"type": "refused", "product": product, "reason": "failed", "available": None, "order_id": None}
        assert first["outcome"] == again["outcome"] == failed
        assert (first["replayed"], again["replayed"]) == (False, True)
        assert await history.audit() == before
        assert [each.settled for each in await history.letters(user)] == ["redriven"]
        assert (await shopper.request("add", id_="f1", product=product, quantity=2))["reason"] == "failed"


async def test_a_redrive_executes_a_failed_request_once_its_cause_is_gone(history: History, tmp_path: Path) -> None:
    """A step of an order is not refused permanently: the dead letter has all that is needed to repeat the step."""
    shop, product = history.shop, product_code("STUCK")
    shop.seed([(product, "Cannot be sold", 100, 5)], tmp_path)
    async with Edge(shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        user = shopper.guest.user_id
        history.guests.add(shopper.guest)
        with failing(history, "inventory.inventory", f"product_code <> '{product}' OR sold = 0") as database:
            order_id = await order(history, shopper, "tok_approve", items=[{"product": product, "quantity": 2}])
            (letter,) = await history.until_letters(user, 1)
            later = "UPDATE orders.orders SET due_at = now() + interval '1 hour' WHERE order_id = %s"
            database.execute(later, [order_id])  # orders would retry, and so do without the redrive
        about = ("failed", "inventory.requests.v1", f"{order_id}/sell")
        assert (letter.reason, letter.topic, letter.event_ids[1]) == about
        stock = "SELECT received, held, sold FROM inventory.inventory WHERE product_code = %s"
        with psycopg.connect(history.database, autocommit=True) as database:
            assert database.execute(stock, [product]).fetchone() == (5, 2, 0)
            done = await asyncio.to_thread(shop.holdfast, "dlq", "redrive", "--key", user, "--json")
            assert json.loads(done.stdout)["redriven"] == 1
            await until(edge, shopper, order_id, "delivered")
            assert database.execute(stock, [product]).fetchone() == (5, 0, 2)
        await history.at_rest()
        await history.audit()
        assert [each.settled for each in await history.letters(user)] == ["redriven"]


async def test_an_unreadable_redriven_record_is_dead_lettered_again(history: History) -> None:
    holdfast = history.shop.holdfast
    async with Edge(history.shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        user = shopper.guest.user_id
        history.produce("cart.requests.v1", [(user.encode(), b"\xff not JSON")])
        (letter,) = await history.until_letters(user, 1)
        await asyncio.to_thread(holdfast, "dlq", "redrive", "--id", letter.id)
        first, second = await history.until_letters(user, 2)
        assert (first.id, first.settled, second.settled) == (letter.id, "redriven", None)
        assert (second.topic, second.reason) == (letter.topic, letter.reason)
        done = await asyncio.to_thread(holdfast, "dlq", "drop", "--key", user)
        assert done.stdout == "1 dead letter dropped; 1 settled before\n"
        assert [each.settled for each in await history.letters(user)] == ["redriven", "dropped"]
        assert (await shopper.request("add", product=history.product, quantity=1))["type"] == "held"
        await history.audit()
