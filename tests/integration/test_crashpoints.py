"""Every process, ended or frozen between any two of its effects: nothing is lost, nothing happens twice.

Each test arms one point of `infrastructure/crashpoints.py` in one process of a small real shop, shops until the process
has come to it, lets its successor finish, and counts everything again. A point that is never reached fails its test.
"""

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator, Iterator

import httpx
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer

from cart_service import messages as cart
from infrastructure import postgres
from infrastructure.crashpoints import KILLED, POINTS, VARIABLE
from infrastructure.settings import Settings
from tests.processes import PATIENCE, Processes, Replica, clean_up, processes
from tests.servers import Servers
from tests.shoppers import Shoppers, shoppers

MODULES = {"edge": "rest_api", "cart": "cart_service", "inventory": "inventory_service", "guard": "cart_service"}
MIGRATION = "migrate.applied"
ELSEWHERE = {"orders", "payment", "delivery", "insights", "notifications"}
"""Whose points are come to in `test_order_worker.py`, `test_payment_process.py`, `test_delivery_process.py`,
`test_insights.py` and `test_notification_mails.py`."""
HERE = [point for point in POINTS if point.partition(".")[0] not in ELSEWHERE]
DUE = (  # Postgres' clock decides, and stands for itself: the cart is moved into the past
    "UPDATE holder SET first_held_at = first_held_at - interval '1 hour', expires_at = expires_at - interval '1 hour'"
    " WHERE user_id = %s"
)


@pytest.fixture(scope="module")
def shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """One worker of each kind, kept; all tests of this file share it, each with shoppers of its own."""
    folder = tmp_path_factory.mktemp("shop")
    with processes(servers, _settings(servers), folder) as here:
        here.seed(MUG=100_000, HOT=40)
        for module in ("rest_api", "cart_service", "inventory_service"):
            here.start(module, module.partition("_")[0])
        for replica in here.replicas:
            replica.wait_ready()
        yield here
    asyncio.run(clean_up(here.settings))


@pytest.fixture
async def crowd(shop: Processes) -> AsyncIterator[Shoppers]:
    async with shoppers(shop.settings) as here:
        yield here


def _settings(servers: Servers) -> Settings:
    return Settings(
        kafka=servers.kafka,
        postgres_url=servers.postgres_url,
        redis_url=servers.redis_url,
        prefix=f"t{secrets.token_hex(3)}.",
    )


def _victim(shop: Processes, point: str) -> Replica:
    module = MODULES[point.partition(".")[0]]
    return next(replica for replica in shop.replicas if replica.module == module)


@pytest.mark.parametrize("point", [point for point in HERE if not point.startswith(("edge.", "migrate."))])
async def test_a_worker_that_dies_at(point: str, shop: Processes, crowd: Shoppers) -> None:
    victim = _victim(shop, point)
    deaths = len(victim.exits)
    victim.arm(f"{point}:2")
    users = f"{point}-{secrets.token_hex(2)}"
    number = 0
    async with asyncio.timeout(PATIENCE):
        while len(victim.exits) == deaths:
            for user in (f"{users}-{number % 6}", f"{users}-late-{number}"):
                await crowd.ask(user, "add", product="HOT" if number % 5 == 0 else "MUG", quantity=1)
            if point == "guard.put_aside":
                await crowd.send(cart.REQUESTS, f"{users}-{number % 6}", f"this is no event {number}".encode())
            if point == "inventory.knocked" and number % 5 == 4:
                await _make_due(shop.settings, f"{users}-late-{number - 3}")
            number += 1
            await asyncio.sleep(0.1)
    assert victim.exits[deaths:] == [KILLED], victim.told()
    for each in range(6):  # and life goes on
        await crowd.ask(f"{users}-{each}", "remove", product="MUG")
    await crowd.settled()
    await crowd.check()
    if point == "guard.put_aside":
        assert await _letters(shop.settings) >= number - 1, "each of them is in the dead letters"


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("edge.")])
async def test_an_edge_that_dies_at(point: str, shop: Processes, crowd: Shoppers) -> None:
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
        assert victim.exits[deaths:] == [KILLED], victim.told()
        answer = await client.post("/v1/cart/items", json=change)
        assert (answer.status_code, answer.headers["retry-after"]) == (409, "1"), "the first one's claim is still open"
        _pass_ten_seconds(shop.settings)
        answer = await client.post("/v1/cart/items", json=change)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["type"], answer.json()["line_quantity"]) == ("held", 2), "carried out once"
        again = await client.post("/v1/cart/items", json=change)
        assert (again.status_code, again.json()) == (200, answer.json())
        assert (await client.get("/v1/cart")).json()["lines"][0]["quantity"] == 2
    await crowd.check()


def test_a_migration_that_dies_before_its_commit_is_made_by_the_next(shop: Processes, servers: Servers) -> None:
    settings = _settings(servers)
    with processes(servers, settings, shop.folder / "migration") as here:
        died = here.run("inventory_service", "migrate", **{VARIABLE: f"{MIGRATION}:1"})
        assert died.returncode == KILLED, died.stderr
        done = here.run("inventory_service", "migrate")
        assert done.returncode == 0, done.stderr
        audited = json.loads(here.run("inventory_service", "audit", "--json").stdout)
        assert (audited["ok"], audited["figures"]["products"]) == (True, 0)
    asyncio.run(clean_up(settings))


def test_every_point_is_visited() -> None:
    assert {point.partition(".")[0] for point in POINTS} == {*MODULES, *ELSEWHERE, "migrate"}
    assert [point for point in POINTS if point.startswith("migrate.")] == [MIGRATION]


@pytest.mark.parametrize(
    ("first", "second"), [("inventory.written", "cart.taken"), ("inventory.committed", "cart.noted")]
)
async def test_a_zombie_does_no_harm_when_it_wakes(first: str, second: str, shop: Processes, crowd: Shoppers) -> None:
    """Frozen between two effects, for longer than its transaction and its session; others do its work meanwhile."""
    others = [*shop.start("inventory_service", "inventory-2"), *shop.start("cart_service", "cart-2")]
    try:
        for other in others:
            other.wait_ready()
        victims = [_victim(shop, point) for point in (first, second)]
        for victim, point in zip(victims, (first, second), strict=True):
            victim.arm(f"{point}:3:pause")
        async with asyncio.timeout(PATIENCE):
            await crowd.keep_shopping(20, lambda: all(victim.frozen for victim in victims))
        await crowd.settled()  # by the others, since nobody of these wakes
        assert all(victim.frozen for victim in victims)
        for victim in victims:
            victim.kill(signal.SIGCONT)
        await crowd.keep_shopping(20, lambda: len(crowd.sent) % 60 == 59)
        await crowd.settled()
        await crowd.check()
        for victim in victims:
            victim.wait_ready()
    finally:
        for other in others:
            other.stop()
            shop.replicas.remove(other)


async def _make_due(settings: Settings, user: str) -> None:
    async with await postgres.connect(settings, "inventory") as connection:
        await connection.execute(DUE, (user,))


def _pass_ten_seconds(settings: Settings) -> None:
    """Move the open claims into the past, as far as it takes to take them over."""
    with psycopg.connect(settings.postgres_url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "{settings.schema_name("edge")}"'.encode())
        connection.execute("UPDATE claim SET claimed_at = claimed_at - interval '10 seconds' WHERE status IS NULL")


async def _letters(settings: Settings) -> int:
    """How many different records lie in the dead letters of the cart's requests."""
    topic = settings.topic(cart.REQUESTS.dead_letters)
    async with AIOKafkaConsumer(topic, bootstrap_servers=settings.kafka, auto_offset_reset="earliest") as consumer:
        found: set[tuple[int, int]] = set()
        while polled := await consumer.getmany(timeout_ms=1_000):
            for records in polled.values():
                letters = [json.loads(record.value)["data"] for record in records]
                found |= {(letter["partition"], letter["offset"]) for letter in letters}
        return len(found)
