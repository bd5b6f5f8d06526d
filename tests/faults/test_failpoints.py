"""Every process, ended or frozen between any two of its effects: nothing is lost, nothing happens twice.

Each test arms one point of `infrastructure/process/failpoints.py` in one process of a small real shop, shops until the
process has reached it, lets its successor finish, and counts everything again. A point that is never reached fails its
test.
"""

import asyncio
import json
import re
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from contracts import cart, inventory, orders
from contracts.envelope import Envelope
from contracts.ids import derive_id, uuid7
from contracts.topics import Topic
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.failpoints import EXIT_KILLED, FAILPOINTS, VARIABLE
from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from tests.testkit import notifications as notices
from tests.testkit.processes import PATIENCE, Processes, Replica, clean_up, processes
from tests.testkit.rest_client import ADDRESS
from tests.testkit.servers import Servers
from tests.testkit.topic_client import Shoppers, shoppers

MODULES = {"edge": "rest_api", "cart": "cart_service", "inventory": "inventory_service", "guard": "cart_service"}
MIGRATION = "migrate.applied"
PLACED = "cart.placed"
INTEGRATION = Path(__file__).parents[1] / "integration"
ELSEWHERE = {
    "accounts": "../faults/test_account_crashes.py",
    "orders": "test_order_worker.py",
    "payment": "test_payment_process.py",
    "delivery": "test_delivery_process.py",
    "insights": "test_insights.py",
}
"""The test file that reaches every failpoint with a prefix."""
AT_THE_EDGE = [point for point in FAILPOINTS if point.startswith("edge.")]
AT_WORK = [point for point in FAILPOINTS if point.startswith(("cart.", "inventory.", "guard.")) and point != PLACED]
DELIVERY: dict[str, Any] = {
    "address": ADDRESS,
    "contact": {"email": "ann@example.org"},
    "payment": {"token": "tok_approve"},
}
DUE = (  # Postgres' clock decides, and stands for itself: the cart is moved into the past
    "UPDATE holder SET first_held_at = first_held_at - interval '1 hour', expires_at = expires_at - interval '1 hour'"
    " WHERE user_id = %s"
)


@pytest.fixture(scope="module")
def shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """One worker of each kind, kept; all tests of this file share it, each with shoppers of its own.

    Each change that takes units locks them first, so that a worker that crashes or freezes in the middle has locks in
    Redis, too.
    """
    folder = tmp_path_factory.mktemp("shop")
    with processes(servers, _settings(servers), folder, HOLDFAST_LOCK_ABOVE="0") as here:
        here.seed(MUG=100_000, HOT=40, ODD=40)
        for module in ("rest_api", "cart_service", "inventory_service"):
            here.start(module, module.partition("_")[0])
        for replica in here.replicas:
            replica.wait_ready()
        yield here
    asyncio.run(clean_up(here.settings))


@pytest.fixture
async def pool(shop: Processes) -> AsyncIterator[Shoppers]:
    async with shoppers(shop.settings) as here:
        yield here


def _settings(servers: Servers) -> Settings:
    return servers.settings()


def _victim(shop: Processes, point: str) -> Replica:
    module = MODULES[point.partition(".")[0]]
    return next(replica for replica in shop.replicas if replica.module == module)


@pytest.mark.parametrize("point", AT_WORK)
async def test_a_worker_that_crashes_at(point: str, shop: Processes, pool: Shoppers) -> None:
    victim = _victim(shop, point)
    deaths = len(victim.exits)
    victim.arm(f"{point}:2")
    users = f"{point}-{secrets.token_hex(2)}"
    number = 0
    async with asyncio.timeout(PATIENCE):
        while len(victim.exits) == deaths:
            for user in (f"{users}-{number % 6}", f"{users}-late-{number}"):
                product, astray = "HOT" if number % 5 == 0 else "MUG", point == "guard.sent_on"
                await pool.ask(user, "add", product=product, quantity=1, astray=astray)
            if point == "guard.put_aside":
                await pool.send(cart.REQUESTS, f"{users}-{number % 6}", f"this is no event {number}".encode())
            if point == "inventory.knocked" and number % 5 == 4:
                await _make_due(shop.settings, f"{users}-late-{number - 3}")
            number += 1
            await asyncio.sleep(0.1)
    assert victim.exits[deaths:] == [EXIT_KILLED], victim.log_tail()
    for each in range(6):  # and life goes on
        await pool.ask(f"{users}-{each}", "remove", product="MUG")
    await pool.settled()
    await pool.check()
    if point == "guard.put_aside":
        assert await _letters(shop.settings) >= number - 1, "each of them is in the dead letters"


async def test_a_cart_worker_that_crashes_between_the_order_and_its_commit(shop: Processes, pool: Shoppers) -> None:
    """Every batch reaches the point; here the batch is a checkout, and nothing else."""
    victim, user, id_ = _victim(shop, PLACED), f"buyer-{secrets.token_hex(2)}", uuid7()
    held = await pool.ask(user, "add", product="MUG", quantity=2)
    await pool.settled()
    [seller] = shop.start("order_service", "orders")
    try:
        seller.wait_ready()
        victim.arm(f"{PLACED}:1")
        victim.kept = False
        assert victim.process is not None
        order_id = derive_id(user, id_, "order")
        checkout = {"order_id": order_id, "version": pool.told[user, held][0]["version"], **DELIVERY}
        await pool.ask(user, "checkout", id_, **checkout)
        assert await asyncio.to_thread(victim.process.wait, PATIENCE) == EXIT_KILLED, victim.log_tail()
        assert len(await _about(shop.settings, orders.REQUESTS, orders.Place, order_id)) == 1
        assert await _about(shop.settings, inventory.REQUESTS, inventory.Commit, order_id) == []

        victim.again()
        await pool.settled()
        await pool.check()
        outcome = {"type": "order", "order_id": order_id, "status": "committed", "order_version": 2}
        assert {str(each) for each in pool.told[user, id_]} == {str(outcome)}, "one outcome, however often it is told"
        assert (await pool.read(user)).lines == (), "the order has what was in the cart"
        places = await _about(shop.settings, orders.REQUESTS, orders.Place, order_id)
        assert len(places) >= 2, "its successor says it again, since nobody acknowledged it"
        assert len({(place.id, str(place.data)) for place in places}) == 1, "and says the same"
        async with asyncio.timeout(PATIENCE):
            while len(stream := await _stream(shop.settings, order_id)) < 2:
                await asyncio.sleep(0.1)
        assert stream == [(1, orders.Placed.TYPE), (2, orders.Committed.TYPE)], "told twice, and placed once"
    finally:
        if not victim.kept:
            victim.again()
        seller.stop()
        shop.replicas.remove(seller)


async def test_a_crash_between_a_dead_letter_and_its_decision_loses_neither(shop: Processes, pool: Shoppers) -> None:
    """The dead letter comes first: a decided request does not fail again, and would leave no dead letter."""
    victim, user = _victim(shop, "inventory.locked"), f"odd-{secrets.token_hex(2)}"
    planted = "ADD CONSTRAINT planted CHECK (product_code <> 'ODD') NOT VALID"
    async with await postgres.connect(shop.settings, "inventory") as connection:
        await connection.execute(f"ALTER TABLE hold {planted}".encode())
        try:
            victim.arm("guard.put_aside:1")
            victim.kept = False
            assert victim.process is not None
            id_ = await pool.ask(user, "add", product="ODD", quantity=1)
            assert await asyncio.to_thread(victim.process.wait, PATIENCE) == EXIT_KILLED, victim.log_tail()
            decided = await connection.execute("SELECT FROM request_log WHERE requestid = %s", [id_])
            assert decided.rowcount == 0
            assert await _letters(shop.settings, inventory.REQUESTS) == 1
            victim.again()
            await pool.settled()
        finally:
            await connection.execute("ALTER TABLE hold DROP CONSTRAINT planted")
            if not victim.kept:
                victim.again()
    assert {told["reason"] for told in pool.told[user, id_]} == {"failed"}, "however often it is told"
    assert await _letters(shop.settings, inventory.REQUESTS) == 1, "the second one is equal"
    await pool.check()


@pytest.mark.parametrize("point", AT_THE_EDGE)
async def test_an_edge_that_crashes_at(point: str, shop: Processes, pool: Shoppers) -> None:
    victim = _victim(shop, point)
    deaths = len(victim.exits)
    victim.arm(f"{point}:1")
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{victim.port}", trust_env=False, timeout=PATIENCE
    ) as client:
        guest = (await client.post("/v1/guests")).json()
        client.headers = httpx.Headers(
            {"Authorization": f"Bearer {guest['token']}", "Idempotency-Key": point, "Prefer": "wait=20"}
        )
        change = {"product": "MUG", "quantity": 2}
        with pytest.raises(httpx.TransportError):
            await client.post("/v1/cart/items", json=change)
        async with asyncio.timeout(PATIENCE):
            while len(victim.exits) == deaths or victim.health() != "ok":
                await asyncio.sleep(0.05)
        assert victim.exits[deaths:] == [EXIT_KILLED], victim.log_tail()
        _move_claims(shop.settings, "now()")  # the start may have taken long
        answer = await client.post("/v1/cart/items", json=change, headers={"Prefer": "wait=0"})
        assert (answer.status_code, answer.headers["retry-after"]) == (409, "1"), "the first one's claim is still open"
        _move_claims(shop.settings, "now() - interval '10 seconds'")
        answer = await client.post("/v1/cart/items", json=change)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["type"], answer.json()["line_quantity"]) == ("held", 2), "carried out once"
        again = await client.post("/v1/cart/items", json=change)
        assert (again.status_code, again.json()) == (200, answer.json())
        assert (await client.get("/v1/cart")).json()["lines"][0]["quantity"] == 2
    await pool.check()


def test_a_migration_that_crashes_before_its_commit_is_made_by_the_next(shop: Processes, servers: Servers) -> None:
    settings = _settings(servers)
    with processes(servers, settings, shop.folder / "migration") as here:
        died = here.run("inventory_service", "migrate", **{VARIABLE: f"{MIGRATION}:1"})
        assert died.returncode == EXIT_KILLED, died.stderr
        done = here.run("inventory_service", "migrate")
        assert done.returncode == 0, done.stderr
        audited = json.loads(here.run("inventory_service", "audit", "--json").stdout)
        assert (audited["ok"], audited["figures"]["products"]) == (True, 0)
    asyncio.run(clean_up(settings))


def test_every_point_is_visited() -> None:
    """A point that is new is in one of these lists, or this fails; and a list's own test fails if it is not reached."""
    visited = {*AT_WORK, *AT_THE_EDGE, PLACED, MIGRATION, *notices.AT_WORK, notices.HANDED_OVER, notices.PUT_ASIDE}
    for service, file in ELSEWHERE.items():
        text = (INTEGRATION / file).read_text()
        assert f'for point in FAILPOINTS if point.startswith("{service}.")]' in text
        visited |= {point for point in FAILPOINTS if point.startswith(f"{service}.")}
    assert visited == FAILPOINTS.keys()


def test_every_point_in_the_code_is_in_the_registry() -> None:
    code = Path(__file__).parents[2]
    files = [file for room in ("*_service", "infrastructure", "rest_api") for file in code.glob(f"{room}/**/*.py")]
    named = {name for file in files for name in re.findall(r'failpoint\("(.+?)"\)', file.read_text())}
    assert named == FAILPOINTS.keys()


@pytest.mark.parametrize(
    ("first", "second"), [("inventory.written", "cart.taken"), ("inventory.committed", "cart.noted")]
)
async def test_a_zombie_does_no_harm_when_it_wakes(first: str, second: str, shop: Processes, pool: Shoppers) -> None:
    """Frozen between two effects, for longer than its transaction and its session; others do its work meanwhile."""
    others = [*shop.start("inventory_service", "inventory-2"), *shop.start("cart_service", "cart-2")]
    try:
        for other in others:
            other.wait_ready()
        victims = [_victim(shop, point) for point in (first, second)]
        for victim, point in zip(victims, (first, second), strict=True):
            victim.arm(f"{point}:3:pause")
        async with asyncio.timeout(PATIENCE):
            await pool.keep_shopping(20, lambda: all(victim.frozen for victim in victims))
        await pool.settled()  # by the others, since nobody of these wakes
        assert all(victim.frozen for victim in victims)
        for victim in victims:
            victim.kill(signal.SIGCONT)
        await pool.keep_shopping(20, lambda: len(pool.sent) % 60 == 59)
        await pool.settled()
        await pool.check()
        for victim in victims:
            victim.wait_ready()
    finally:
        for other in others:
            other.stop()
            shop.replicas.remove(other)


async def _about(settings: Settings, topic: Topic, message: type[Any], order_id: str) -> list[Envelope]:
    """Return the messages of one kind about an order on a topic."""
    events = [
        Envelope.decode(record.key, record.value) async for record in read_topic(settings, [settings.topic(topic)])
    ]
    return [event for event in events if event.type == message.TYPE and event.data["order_id"] == order_id]


async def _stream(settings: Settings, order_id: str) -> list[tuple[int, str]]:
    """The versions and types of an order's events."""
    query = "SELECT version, type FROM order_event WHERE order_id = %s ORDER BY version"
    async with await postgres.connect(settings, "orders") as connection:
        return [(version, type_) async for version, type_ in await connection.execute(query, [order_id])]


async def _make_due(settings: Settings, user: str) -> None:
    async with await postgres.connect(settings, "inventory") as connection:
        await connection.execute(DUE, (user,))


def _move_claims(settings: Settings, to: str) -> None:
    """Let the open claims be of another time: one of ten seconds ago may be taken over."""
    with psycopg.connect(settings.postgres_url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "{settings.schema_name("edge")}"'.encode())
        connection.execute(f"UPDATE claim SET claimed_at = {to} WHERE status IS NULL".encode())


async def _letters(settings: Settings, topic: Topic = cart.REQUESTS) -> int:
    """How many different records of a topic lie in its dead letters."""
    records = [record async for record in read_topic(settings, [settings.topic(topic.dead_letter_topic)])]
    letters = [json.loads(record.value)["data"] for record in records]
    return len({(letter["partition"], letter["offset"]) for letter in letters})
