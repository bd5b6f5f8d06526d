"""What Faust does when its world moves: recovery, membership, frozen workers, rebalances under load, ends.

The shop has two workers of each kind. After each fault every request has exactly one outcome, the stock adds up, the
carts equal the holds, and nothing is left uncommitted.
"""

import asyncio
import queue
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from psycopg import AsyncConnection

from infrastructure import faust_app
from infrastructure.broker import ensure_topics, partition_of
from infrastructure.clock import now
from infrastructure.envelope import Envelope
from infrastructure.local import judge, probes, services
from infrastructure.local.events import Event
from infrastructure.local.keeper import Keeper
from infrastructure.local.state import Root
from infrastructure.settings import Settings
from infrastructure.topics import PARTITIONS
from inventory_service.messages import REQUESTS, Hold
from tests.processes import PATIENCE, Processes, Replica, clean_up, processes, until
from tests.proxy import Mood, proxy
from tests.servers import Servers
from tests.shoppers import Shoppers, shoppers

MODULES = {"cart": "cart_service", "inventory": "inventory_service"}
SESSION = 6.0


@pytest.fixture(scope="module")
def shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    settings = Settings(
        kafka=servers.kafka,
        postgres_url=servers.postgres_url,
        redis_url=servers.redis_url,
        prefix=f"t{secrets.token_hex(3)}.",
    )
    with processes(servers, settings, tmp_path_factory.mktemp("shop")) as here:
        here.seed(MUG=100_000, HOT=300)
        for kind, module in MODULES.items():
            here.start(module, f"{kind}-1", f"{kind}-2")
        for replica in here.replicas:
            replica.wait_ready()
        yield here
    asyncio.run(clean_up(settings))


@pytest.fixture
async def crowd(shop: Processes) -> AsyncIterator[Shoppers]:
    """Shoppers for one test; the shop is whole before and after it."""
    for replica in shop.replicas:
        if not replica.kept:  # the test before has failed
            replica.again()
        replica.wait_ready()
    async with shoppers(shop.settings) as here:
        yield here
        await here.settled()
        await here.check()
    for replica in shop.replicas:
        await _committed(shop, replica)


def _rebalances(replica: Replica) -> int:
    """How often it was told that its group is assigned anew."""
    return sum("because it is rebalancing" in message for message in replica.messages())


def _one(shop: Processes, name: str) -> Replica:
    return next(replica for replica in shop.replicas if replica.name == name)


async def _committed(shop: Processes, replica: Replica, patience: float = 30.0) -> None:
    """Return when everything that stands on the topics of a service is committed by its group."""
    kind = next(kind for kind, module in MODULES.items() if module == replica.module)
    topics = {"cart": ("cart.requests.v1", "inventory.responses.v1"), "inventory": ("inventory.requests.v1",)}[kind]
    places = [TopicPartition(shop.settings.prefix + topic, each) for topic in topics for each in range(PARTITIONS)]
    admin = AIOKafkaAdminClient(bootstrap_servers=shop.settings.kafka)
    await admin.start()
    try:
        end = time.monotonic() + patience
        while True:
            ends = await _ends(shop.settings, places)
            found = await admin.list_consumer_group_offsets(shop.settings.prefix + kind)
            behind = {place: (found[place].offset if place in found else -1, at) for place, at in ends.items()}
            behind = {place: (done, at) for place, (done, at) in behind.items() if max(done, 0) < at}
            if not behind:
                return
            assert time.monotonic() < end, f"{replica.name}: not committed (done, end): {behind}"
            await asyncio.sleep(0.3)
    finally:
        await admin.close()


async def _ends(settings: Settings, places: list[TopicPartition]) -> dict[TopicPartition, int]:
    async with AIOKafkaConsumer(bootstrap_servers=settings.kafka) as consumer:
        found: dict[TopicPartition, int] = await consumer.end_offsets(places)
        return found


async def _for(seconds: float, crowd: Shoppers, rate: float = 20) -> float:
    """Shop for a while; returns the moment at which it began."""
    began = time.monotonic()
    await crowd.keep_shopping(rate, lambda: time.monotonic() > began + seconds)
    return began


# ---- recovery -------------------------------------------------------------------------------------------------------


class Clockwork:
    """What a recovery does to its consumer, written down; enough of Faust's parts for one call."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.flowing = True
        self.app = self.consumer = self.tables = self.flow_control = self.assignor = self._fetcher = self
        self.on_rebalance_complete = self.log = self.completed = self
        self.conf = self
        self.broker_request_timeout = 1.0
        self.consumer_generation_id = 1

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("t", 0)}

    def resume_partitions(self, _: object) -> None:
        self.done.append("resumes while the consumer fetches" if self.flowing else "resumes while nobody fetches")

    async def perform_seek(self) -> None:
        self.done.append("seeks")

    def stop_flow(self) -> None:
        self.flowing = False

    def resume_flow(self) -> None:
        self.flowing = True
        self.done.append("fetches")

    async def _wait(self, work: Coroutine[Any, Any, None], **_: float) -> None:
        await work

    def values(self) -> list[object]:
        return []

    async def send(self) -> None: ...

    async def maybe_start(self) -> None: ...

    def __getattr__(self, _: str) -> Callable[..., bool]:
        return lambda *_, **__: False


@pytest.mark.parametrize(
    ("faust", "ours"),
    [
        (faust_app._on_recovery_completed, faust_app._without_fetching),
        (faust_app._resume_streams, faust_app._without_fetching_either),
    ],
    ids=["tables", "no tables"],
)
async def test_the_recovery_patch_is_still_needed_and_does_what_it_says(faust: Any, ours: Any) -> None:
    before: Any = Clockwork()
    after: Any = Clockwork()
    await faust(before, 1)
    assert before.done == ["resumes while the consumer fetches", "seeks", "fetches"], (
        "Faust has mended its recovery (faust-streaming#596): remove the patch from infrastructure/faust_app.py"
    )
    await ours(after, 1)
    assert after.done == ["resumes while nobody fetches", "seeks", "fetches"]


@pytest.mark.parametrize("state", ["full", "empty", "damaged"])
async def test_carts_recover_with_a_data_directory_that_is(state: str, shop: Processes, crowd: Shoppers) -> None:
    await _for(1.5, crowd)
    for name in ("cart-1", "cart-2"):
        cart = _one(shop, name)
        cart.stop(signal.SIGKILL)
        if state == "empty":
            shutil.rmtree(cart.folder)
            cart.folder.mkdir()
        if state == "damaged":
            for place in (cart.folder / "faust", cart.folder / "faust" / "v1", cart.folder / "faust" / "v1" / "tables"):
                place.mkdir(exist_ok=True)
                (place / "carts.db").write_bytes(secrets.token_bytes(4096))
            (cart.folder / "cart-cart-1.lock").write_bytes(secrets.token_bytes(64))
    await _for(1, crowd)  # a backlog
    for name in ("cart-1", "cart-2"):
        _one(shop, name).start()
        _one(shop, name).kept = True
    for name in ("cart-1", "cart-2"):
        _one(shop, name).wait_ready()


@pytest.mark.parametrize("missing", ["some", "all"])
async def test_carts_recover_without_the_changelog_records_that_are_missing(
    missing: str, shop: Processes, crowd: Shoppers
) -> None:
    await _for(2, crowd)
    await crowd.settled()
    carts = [_one(shop, name) for name in ("cart-1", "cart-2")]
    for cart in carts:
        cart.stop()
    await _for(0.5, crowd)
    changelog = f"{shop.settings.prefix}cart-carts-changelog"
    places = [TopicPartition(changelog, each) for each in range(PARTITIONS)]
    ends = await _ends(shop.settings, places)
    admin = AIOKafkaAdminClient(bootstrap_servers=shop.settings.kafka)
    await admin.start()
    try:  # a compacted topic refuses it: somebody has set a retention, which the reference forbids
        for policy in ("delete", "compact"):
            config = ConfigResource(ConfigResourceType.TOPIC, changelog, {"cleanup.policy": policy})
            await admin.alter_configs([config])
            if policy == "delete":
                gone = {place: end if missing == "all" else end // 2 for place, end in ends.items() if end}
                await admin.delete_records({place: RecordsToDelete(before_offset=at) for place, at in gone.items()})
    finally:
        await admin.close()
    for cart in carts:
        cart.start()
        cart.kept = True
    for cart in carts:
        cart.wait_ready()


# ---- membership -----------------------------------------------------------------------------------------------------


async def test_a_second_worker_of_a_name_does_not_start_on_the_same_machine(shop: Processes, crowd: Shoppers) -> None:
    for kind, module in MODULES.items():
        second = shop.add(module, f"{kind}-1")
        shop.replicas.remove(second)
        second.start()
        assert second.process is not None
        assert second.process.wait(30) == 1
        assert "-1 runs already" in second.told()
        assert "give this one another HOLDFAST_REPLICA" in second.told()
    await _for(1, crowd)


async def test_a_second_worker_of_a_name_on_another_machine_does_no_harm(shop: Processes, crowd: Shoppers) -> None:
    """No lock reaches there. Kafka gives the name to the last one that came; the other joins again, and so on."""
    seconds = [shop.add(module, f"{kind}-1", folder=f"elsewhere-{kind}") for kind, module in MODULES.items()]
    for second in seconds:
        shop.replicas.remove(second)
        second.start()
        second.kept = False
    try:
        await _for(12, crowd)
    finally:
        for second in seconds:
            second.stop(signal.SIGKILL)
    for kind, second in zip(MODULES, seconds, strict=True):
        first = _one(shop, f"{kind}-1")
        first.wait_ready()
        assert any("UnknownMemberId" in each for each in (*first.messages(), *second.messages())), "they did not meet"


async def test_workers_frozen_for_longer_than_their_session_wake_and_go_on(shop: Processes, crowd: Shoppers) -> None:
    victims, others = ([_one(shop, f"{kind}-{each}") for kind in MODULES] for each in (1, 2))
    moved = [_rebalances(other) for other in others]
    shopping = asyncio.create_task(_for(SESSION + 9, crowd))
    await asyncio.sleep(1)
    for victim in victims:
        victim.kill(signal.SIGSTOP)
    await asyncio.sleep(SESSION + 4)
    for victim in victims:
        victim.kill(signal.SIGCONT)
    await shopping
    await crowd.settled()
    for victim in victims:
        victim.wait_ready()
    for other, before in zip(others, moved, strict=True):
        assert _rebalances(other) > before, "it had the work of both meanwhile"


async def test_rebalances_under_load(shop: Processes, crowd: Shoppers) -> None:
    """A third worker of each kind comes, under a new name, works, and dies; its partitions wait for its session's end.

    So the group is assigned anew about every five seconds.
    """
    await _for(1, crowd)
    done = asyncio.Event()
    began, answered = time.monotonic(), len(crowd.first_told)
    shopping = asyncio.create_task(crowd.keep_shopping(20, done.is_set))
    try:
        for number in range(3, 7):
            thirds = [shop.add(module, f"{kind}-{number}") for kind, module in MODULES.items()]
            next_change = time.monotonic() + 5
            for third in thirds:
                third.start()
            for third in thirds:
                await asyncio.to_thread(third.wait_ready)  # it has partitions
            await asyncio.sleep(next_change - time.monotonic())
            for third in thirds:
                await asyncio.to_thread(third.stop, signal.SIGKILL)
                shop.replicas.remove(third)
    finally:
        done.set()
    asked, told = await shopping, len(crowd.first_told) - answered
    print(
        f"a worker comes and dies, four times in {time.monotonic() - began:.0f} s: {told} of {asked} answered meanwhile"
    )
    assert told >= asked / 2
    await crowd.settled()


# ---- ends: how long shoppers wait -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODULES)
async def test_a_worker_that_is_killed_and_brought_back(kind: str, shop: Processes, crowd: Shoppers) -> None:
    """The other one goes on: the dead one's place in the group is kept for it."""
    await _for(2, crowd)
    victim = _one(shop, f"{kind}-1")
    shopping = asyncio.create_task(_for(9, crowd))
    victim.kill()
    began = time.monotonic()
    await shopping
    await crowd.settled()
    print(f"kill -9 {kind}, brought back: {_waits(crowd, began)}")


@pytest.mark.parametrize("kind", MODULES)
async def test_a_worker_that_is_killed_for_good(kind: str, shop: Processes, crowd: Shoppers) -> None:
    """Its partitions go to the other one when its session is over."""
    await _for(2, crowd)
    victim = _one(shop, f"{kind}-1")
    victim.kept = False
    shopping = asyncio.create_task(_for(13, crowd))
    victim.kill()
    began = time.monotonic()
    await shopping
    await crowd.settled()
    print(f"kill -9 {kind}, for good: {_waits(crowd, began)}")
    victim.again()


@pytest.mark.parametrize("kind", MODULES)
async def test_a_worker_that_is_asked_to_end_under_load(kind: str, shop: Processes, crowd: Shoppers) -> None:
    await _for(2, crowd)
    victim = _one(shop, f"{kind}-1")
    shopping = asyncio.create_task(_for(9, crowd))
    began = time.monotonic()
    status = await asyncio.to_thread(victim.stop)
    ended = time.monotonic() - began
    victim.start()
    victim.kept = True
    await shopping
    await crowd.settled()
    assert status == 0, victim.told()
    print(f"SIGTERM {kind}: ended in {ended:.2f} s, {_waits(crowd, began)}")


async def test_all_are_asked_to_end_at_once(shop: Processes, crowd: Shoppers) -> None:
    """The first that leaves puts the other into a rebalance in the middle of its end."""
    await _for(2, crowd)
    shopping = asyncio.create_task(_for(3, crowd))
    statuses = await asyncio.gather(*(asyncio.to_thread(replica.stop) for replica in shop.replicas))
    assert statuses == [0] * len(shop.replicas), [replica.told() for replica in shop.replicas]
    for replica in shop.replicas:
        replica.start()
        replica.kept = True
    await shopping
    await crowd.settled()


async def test_who_is_asked_to_end_makes_room_at_once_and_the_last_one_keeps_the_place(
    shop: Processes, crowd: Shoppers
) -> None:
    """The others need not wait for the session's end; and whom nobody can take over from is not missed."""
    await _for(1, crowd)
    for kind in MODULES:
        leaving, staying = (_one(shop, f"{kind}-{each}") for each in (1, 2))
        assert await _members(shop, kind) == ({leaving.name, staying.name}, "Stable")
        assert await asyncio.to_thread(leaving.stop) == 0
        members, _ = await _members(shop, kind)
        assert members == {staying.name}, "it would be in the group until its session ends"
        async with asyncio.timeout(PATIENCE):
            while await _members(shop, kind) != ({staying.name}, "Stable") or staying.health() != "ok":
                await asyncio.sleep(0.05)
        assert await asyncio.to_thread(staying.stop) == 0
        assert await _members(shop, kind) == ({staying.name}, "Stable"), "its successor comes without a rebalance"
        for replica in (staying, leaving):
            replica.start()
            replica.kept = True
        for replica in (staying, leaving):
            await asyncio.to_thread(replica.wait_ready)


async def _members(shop: Processes, kind: str) -> tuple[set[str], str]:
    """The replicas in the group of a service, and the group's state, as the broker knows them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=shop.settings.kafka)
    await admin.start()
    try:
        [response] = await admin.describe_consumer_groups([shop.settings.prefix + kind])
        [(_, _, state, _, _, members, *_)] = response.groups
        names = {replica.name for replica in shop.replicas}
        prefix = shop.settings.prefix  # a static member's id begins with its name
        return {name for name in names if any(each[0].startswith(f"{prefix}{name}-") for each in members)}, state
    finally:
        await admin.close()


def _waits(crowd: Shoppers, since: float) -> str:
    """The longest time in which nobody was told anything, and the longest that one request waited."""
    worst = max(crowd.first_told[key] - at for key, at in crowd.sent.items() if at >= since)
    return f"silence {crowd.silence(since):.2f} s; one request waited {worst:.2f} s"


async def test_asked_to_end_while_postgres_is_away_nothing_is_lost(
    shop: Processes, crowd: Shoppers, servers: Servers
) -> None:
    """What can't be decided before the end is not acknowledged, and decided by the next process."""
    url = urlsplit(servers.postgres_url)
    victim, other = _one(shop, "inventory-1"), _one(shop, "inventory-2")
    with proxy(f"{url.hostname}:{url.port}") as between:
        away = url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{between.port}").geturl()
        other.stop()
        victim.again(HOLDFAST_POSTGRES_URL=away)
        await _for(1, crowd)
        await crowd.settled()
        between.mood = Mood(refuse=True)
        between.reset()
        answered = len(crowd.first_told)
        await _for(2, crowd)
        assert victim.health("/livez") == "ok", "it tries again and again"
        began = time.monotonic()
        status = await asyncio.to_thread(victim.stop)
        print(f"SIGTERM without Postgres: status {status} after {time.monotonic() - began:.1f} s")
        assert status in {0, 75}, victim.told()
        assert time.monotonic() - began < 10
        assert len(crowd.first_told) == answered < len(crowd.sent)
    for replica in (victim, other):
        replica.again(HOLDFAST_POSTGRES_URL=servers.postgres_url)


# ---- a backlog ------------------------------------------------------------------------------------------------------

BACKLOG = 6000
"""Requests that wait: more than a worker's queue and the batch in hand together hold."""


async def _fill(settings: Settings, first: int) -> None:
    """Requests for a hold, as the cart sends them, of as many shoppers."""
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka, linger_ms=20) as producer:
        for number in range(first, first + BACKLOG):
            user, id_ = f"user-{number % 997}", f"r{number}"
            event = Envelope(
                id=f"{user}/{id_}/hold",
                source="/cart",
                type=Hold.TYPE,
                subject=user,
                time=now(),
                requestid=id_,
                data={"user_id": user, "mode": "add", "product": "MUG", "quantity": 1},
            )
            place = partition_of(event.key)
            await producer.send(settings.topic(REQUESTS), event.encode(), event.key, partition=place)


async def test_two_workers_that_come_to_a_backlog_leave_nothing_of_it(
    servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    """One begins to drain, the other joins: queues are full and records in hand while all is assigned anew."""
    rounds = 3
    with processes(servers, settings, tmp_path) as here:
        here.seed(MUG=rounds * BACKLOG)
        await ensure_topics(settings, [REQUESTS])
        for number in range(rounds):
            await _fill(settings, number * BACKLOG)
            pair = [here.add(MODULES["inventory"], f"inventory-{each}") for each in (1, 2)]
            for replica in pair:
                replica.start()
            for replica in pair:
                await asyncio.to_thread(replica.wait_ready)
            await _committed(here, pair[0])
            for replica in pair:
                await asyncio.to_thread(replica.stop)
        schema = settings.schema_name("inventory")
        async with await AsyncConnection.connect(settings.postgres_url) as connection:
            counted = await connection.execute(f"SELECT count(*), count(DISTINCT requestid) FROM {schema}.request_log")
            assert await counted.fetchone() == (rounds * BACKLOG, rounds * BACKLOG)
    await clean_up(settings)


# ---- liveness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "verdict"),
    [("GRACE", "ok"), ("ABSENT", "ok"), ("DEAF", "records wait"), ("ASLEEP", "silent")],
)
async def test_a_worker_is_alive_as_long_as_it_tries(
    product: str, verdict: str, servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    with processes(servers, settings, tmp_path) as here:
        stuck = here.add("tests.stuck_worker", "one")
        stuck.start()
        assert stuck.health() in {"silent", "starting or stopping", "no partitions assigned"}
        stuck.wait_ready()
        async with shoppers(settings) as crowd:
            for number in range(3):
                await crowd.ask(f"user-{number}", "check", product=product, session="s")
        if verdict == "ok":
            end = time.monotonic() + 5  # twice the time after which a stall is one
            until(lambda: stuck.health("/livez") != "ok" or time.monotonic() > end)
        else:
            until(lambda: stuck.health("/livez").startswith(verdict), 30, lambda: stuck.health("/livez"))
        assert stuck.health("/livez").startswith(verdict)
    await clean_up(settings)


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("recovery", "a start, a rebalance or a recovery has stood still"),
        ("reading", "nothing was asked of Kafka"),
        ("fetcher", "silent"),
        ("partition", "records wait on"),
    ],
)
async def test_a_worker_that_gets_no_records_is_put_away_and_its_successor_works(
    fault: str, verdict: str, servers: Servers, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the supervisor itself: a worker that says it is not well, or has ended, is started again."""
    monkeypatch.setattr(judge, "UNWELL", 3.0)  # seconds: two looks of the keeper and some of ours
    told: queue.SimpleQueue[Event] = queue.SimpleQueue()
    root = Root(tmp_path / "root")
    root.make()
    environment = {**servers.environment(), "HOLDFAST_PREFIX": settings.prefix, "STUCK_IN": fault}
    stuck = services.Service(
        root, services.Kind("stuck", "tests.stuck_worker"), "stuck", probes.free_port(), environment
    )
    keeper = Keeper(stuck, told.put, lambda: None)
    keeper.start()
    try:
        verdicts = set()
        async with shoppers(settings) as crowd:
            while keeper.restarts == 0:
                verdicts.add(await asyncio.to_thread(_livez, stuck.port))
                for user in ("user-0", "user-1"):
                    await crowd.ask(user, "check", product="GRACE", session="s")
                await asyncio.sleep(0.05)
        event = await asyncio.to_thread(_next, told, "lost")
        assert any(each.startswith(verdict) for each in verdicts), (verdicts, event, root.log("stuck").read_text())
        assert ("unwell" in event.text) == (verdict != "silent"), event.text
        await asyncio.to_thread(_next, told, "ready")
    finally:
        await asyncio.to_thread(keeper.stop, 10)
        keeper.join()
    await clean_up(settings)


def _livez(port: int) -> str:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False, timeout=2)
    except httpx.TransportError:
        return "silent"
    return str(answer.json().get("detail", "ok"))


def _next(told: "queue.SimpleQueue[Event]", kind: str) -> Event:
    """The next event of a kind."""
    while (event := told.get(timeout=60)).kind != kind:
        pass
    return event
