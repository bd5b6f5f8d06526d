"""Faust under changes of its environment: recovery, membership, frozen workers, rebalances under load, ends.

The shop has two workers of each kind. After each fault every request has exactly one outcome, the stock adds up, the
carts equal the holds, and nothing is left uncommitted.
"""

import asyncio
import queue
import re
import secrets
import shutil
import signal
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from faust.tables import recovery
from psycopg import AsyncConnection

from cart_service.model import RETRY_DELAYS, Cart
from contracts import cart
from contracts.envelope import Envelope
from contracts.inventory import REQUESTS, Hold
from contracts.topics import Topic
from infrastructure.local.events import Event
from infrastructure.local.servers import probes
from infrastructure.local.state import Root
from infrastructure.local.supervision import health_tracker, services
from infrastructure.local.supervision.watchdog import Watchdog
from infrastructure.messaging.broker import ensure_topics
from infrastructure.messaging.faust import app
from infrastructure.messaging.topic_history import read_topic
from infrastructure.messaging.worker import Worker
from infrastructure.process.clock import now
from infrastructure.process.service import EX_TEMPFAIL
from infrastructure.process.settings import Settings
from tests.testkit.processes import PATIENCE, Processes, Replica, clean_up, processes, until
from tests.testkit.servers import PARTITIONS, Servers, partition
from tests.testkit.tcp_proxy import ProxyFault, proxy
from tests.testkit.topic_client import Shoppers, refused, shoppers
from tests.testkit.worker_pairs import (
    HEARTBEAT,
    KILLED,
    MODULES,
    SESSION,
    assigned_partitions,
    keep_shopping_for,
    users_of,
)

LEFT = 3.0
"""Longest silence, in seconds, for the shoppers of a worker that leaves its group. The target is one second, which a
machine that runs other tests beside this one can't promise; `python -m tests.faults.silences` holds a quiet machine to
it. Half a session is enough to see the difference: if the worker does not leave, its partitions are free only after the
session, and its shoppers wait for as long, less a heartbeat."""
NOISE = 2.0
"""Seconds: the longest wait before the fault, which is the machine's, is added to the bound, up to this. With more, a
worker that does not leave would pass."""
TRIES = 3
MANY_CARTS = 40_000
"""So many are not recovered within a second."""


@pytest.fixture(scope="module")
def shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    settings = servers.settings()
    with processes(servers, settings, tmp_path_factory.mktemp("shop")) as here:
        here.seed(MUG=100_000, HOT=10)
        for kind, module in MODULES.items():
            here.start(module, f"{kind}-1", f"{kind}-2")
        for replica in here.replicas:
            replica.wait_ready()
        yield here
    asyncio.run(clean_up(settings))


@pytest.fixture
async def pool(shop: Processes) -> AsyncIterator[Shoppers]:
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
    """Return how often the replica logged that its group is rebalancing."""
    return sum("because it is rebalancing" in message for message in replica.messages())


def _one(shop: Processes, name: str) -> Replica:
    return next(replica for replica in shop.replicas if replica.name == name)


async def _committed(shop: Processes, replica: Replica, patience: float = 30.0) -> None:
    """Return when all records on the topics of a service are committed by its group."""
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


async def _noise(pool: Shoppers) -> float:
    """How long the unluckiest shopper waits for this machine, for nothing is wrong yet."""
    began = await keep_shopping_for(2, pool)
    await pool.settled()
    return pool.longest_wait(began)


# ---- recovery -------------------------------------------------------------------------------------------------------


class RecoveryRecorder:
    """A record of the calls that a recovery makes on its consumer; enough of Faust's parts for one call."""

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
        (app._on_recovery_completed, app._without_fetching),
        (app._resume_streams, app._without_fetching_either),
    ],
    ids=["tables", "no tables"],
)
async def test_the_recovery_patch_is_still_needed_and_does_what_it_says(faust: Any, ours: Any) -> None:
    before: Any = RecoveryRecorder()
    after: Any = RecoveryRecorder()
    await faust(before, 1)
    assert before.done == ["resumes while the consumer fetches", "seeks", "fetches"], (
        "Faust has fixed its recovery (faust-streaming#596): remove the patch from "
        "infrastructure/messaging/faust/app.py"
    )
    await ours(after, 1)
    assert after.done == ["resumes while nobody fetches", "seeks", "fetches"]


def test_every_app_has_the_recovery_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = recovery.Recovery
    monkeypatch.setattr(patched, "on_recovery_completed", app._on_recovery_completed)
    monkeypatch.setattr(patched, "_resume_streams", app._resume_streams)
    app.create_app(Settings(prefix="t."), "cart")
    assert patched.on_recovery_completed is app._without_fetching
    assert patched._resume_streams is app._without_fetching_either


async def test_carts_recover_whatever_lies_in_their_directory(shop: Processes, pool: Shoppers) -> None:
    """A table is kept in memory and at the broker; all that a worker has on disk is its lock, which nobody reads.

    With a store on disk there would be more files, and this test would have to damage them.
    """
    await keep_shopping_for(1.5, pool)
    emptied, damaged = (_one(shop, f"cart-{each}") for each in (1, 2))
    for worker in (emptied, damaged):
        worker.stop(signal.SIGKILL)
        assert _files(worker) == {f"cart-{worker.name}.lock"}
    shutil.rmtree(emptied.folder)
    emptied.folder.mkdir()
    garbage = secrets.token_bytes(4096)
    planted = {damaged.folder / name for name in ("cart-cart-2.lock", "faust/carts.db", "faust/v1/tables/carts-0.db")}
    for place in planted:
        place.write_bytes(garbage)
    await keep_shopping_for(1, pool)  # a backlog
    for worker in (emptied, damaged):
        worker.start()
        worker.kept = True
    for worker in (emptied, damaged):
        worker.wait_ready()
    await pool.settled()
    assert {place.read_bytes() for place in planted} == {garbage}, "it was of use to somebody"
    assert _files(emptied) == {"cart-cart-1.lock"}


def _files(worker: Replica) -> set[str]:
    """The files that a worker has made in its directory; its log is not its own."""
    files = {str(path.relative_to(worker.folder)) for path in worker.folder.rglob("*") if path.is_file()}
    return files - {worker.log.name}


NO_CARTS: tuple[bytes | None, ...] = (
    b"",
    b"\xff\x00",
    b"{",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"revision": "many"}',
    b'{"revision": 1, "pending": [{"id": 1}]}',
    b'"pending":[]}',  # the end of most carts
    None,
)
"""Changelog values that are not carts. The last one is a tombstone."""
NO_SHOPPERS = (b"", b"\xff\xfe", b"\x00", b"k" * 5_000)


async def test_carts_recover_from_a_changelog_with_records_that_are_no_carts(
    servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    """The damaged carts count as absent: the valid ones between them are recovered, and their users can shop again."""
    changelog = Topic("cart-carts-changelog", keyed_by="user")
    await ensure_topics(settings, [changelog, REQUESTS])
    waiting = cart.PendingRequest(id="r1", type="add", product="MUG", quantity=1, since=now() - timedelta(minutes=1))
    damaged = {f"user-{number}": value for number, value in enumerate(NO_CARTS, 1)}
    found = [(key, b"{") for key in NO_SHOPPERS]
    whole = (b"user-0", Cart(pending=(waiting,)).model_dump_json().encode())
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka) as producer:
        for key, value in [*found, whole, *((user.encode(), value) for user, value in damaged.items())]:
            # All on one partition, which is that of one of them: to lie astray is a damage as well.
            await producer.send_and_wait(settings.topic(changelog), value, key, partition=partition(b"user-0"))
    with processes(servers, settings, tmp_path) as here:
        here.seed(MUG=100)
        [worker] = here.start("cart_service", "cart-1")
        here.start("inventory_service", "inventory-1")
        for replica in here.replicas:
            await asyncio.to_thread(replica.wait_ready)
        async with shoppers(settings) as pool:
            pool.ids.add("r1")
            pool.sent["user-0", "r1"] = time.monotonic()  # by nobody here: the worker has to retry it
            for user in damaged:
                await pool.ask(user, "add", product="MUG", quantity=1)
            await pool.settled()
            await pool.check()
        assert worker.exits == []
        # Equal messages are limited to one per second, so the first one stands for the others.
        assert any(re.match("the stored cart of user .* is invalid", text) for text in worker.messages())
    await clean_up(settings)


@pytest.mark.parametrize("missing", ["some", "all"])
async def test_carts_recover_without_the_changelog_records_that_are_missing(
    missing: str, shop: Processes, pool: Shoppers
) -> None:
    await keep_shopping_for(2, pool)
    await pool.settled()
    carts = [_one(shop, name) for name in ("cart-1", "cart-2")]
    for worker in carts:
        worker.stop()
    await keep_shopping_for(0.5, pool)
    changelog = f"{shop.settings.prefix}cart-carts-changelog"
    places = [TopicPartition(changelog, each) for each in range(PARTITIONS)]
    ends = await _ends(shop.settings, places)
    admin = AIOKafkaAdminClient(bootstrap_servers=shop.settings.kafka)
    await admin.start()
    try:  # a compacted topic refuses it: an operator has set a retention, which the reference forbids
        for policy in ("delete", "compact"):
            config = ConfigResource(ConfigResourceType.TOPIC, changelog, {"cleanup.policy": policy})
            await admin.alter_configs([config])
            if policy == "delete":
                gone = {place: end if missing == "all" else end // 2 for place, end in ends.items() if end}
                await admin.delete_records({place: RecordsToDelete(before_offset=at) for place, at in gone.items()})
    finally:
        await admin.close()
    for worker in carts:
        worker.start()
        worker.kept = True
    for worker in carts:
        worker.wait_ready()


async def test_a_worker_that_is_recovering_retries_pending_requests(
    servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    """A table that takes seconds to recover, and a clock that ticks meanwhile; nobody else would ever ask."""
    changelog = Topic("cart-carts-changelog", keyed_by="user")
    await ensure_topics(settings, [changelog, REQUESTS])
    waiting = cart.PendingRequest(id="r1", type="add", product="MUG", quantity=1, since=now() - timedelta(minutes=1))
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka, linger_ms=20) as producer:
        for number in range(MANY_CARTS):
            state = Cart(revision=1, pending=() if number else (waiting,))
            key = f"user-{number}".encode()
            value = state.model_dump_json().encode()
            await producer.send(settings.topic(changelog), value, key, partition=partition(key))
    with processes(servers, settings, tmp_path) as here:
        began = time.monotonic()
        [worker] = here.start("cart_service", "cart-1")
        worker.wait_ready()
        ready = time.monotonic() - began
        end = time.monotonic() + RETRY_DELAYS[0].total_seconds() + 10
        while not (asked := [record async for record in read_topic(settings, [settings.topic(REQUESTS)])]):
            assert time.monotonic() < end, "nobody asks again"
            await asyncio.sleep(0.5)
        print(f"ready after {ready:.1f} s, asked again after {time.monotonic() - began:.1f} s")
        assert {Envelope.decode(record.key, record.value).requestid for record in asked} == {"r1"}
    await clean_up(settings)


# ---- membership -----------------------------------------------------------------------------------------------------


async def test_a_second_worker_of_a_name_does_not_start_on_the_same_machine(shop: Processes, pool: Shoppers) -> None:
    for kind, module in MODULES.items():
        second = shop.add(module, f"{kind}-1")
        shop.replicas.remove(second)
        second.start()
        assert second.process is not None
        assert second.process.wait(30) == 1
        assert "-1 runs already" in second.log_tail()
        assert "set another HOLDFAST_REPLICA" in second.log_tail()
    await keep_shopping_for(1, pool)


async def test_a_second_worker_of_a_name_on_another_machine_does_no_harm(shop: Processes, pool: Shoppers) -> None:
    """No lock reaches there. Kafka gives the name to the last one that came; the other joins again, and so on."""
    firsts = [_one(shop, f"{kind}-1") for kind in MODULES]
    seconds = [shop.add(module, f"{kind}-1", folder=f"elsewhere-{kind}") for kind, module in MODULES.items()]
    for second in seconds:
        shop.replicas.remove(second)
        second.start()
        second.kept = False
    end = time.monotonic() + PATIENCE
    try:
        await keep_shopping_for(9, pool)
        while not all(_met(*pair) for pair in zip(firsts, seconds, strict=True)):
            assert time.monotonic() < end, "they did not meet"
            await keep_shopping_for(1, pool)
        await keep_shopping_for(3, pool)
    finally:
        for second in seconds:
            second.stop(signal.SIGKILL)
    for first in firsts:
        first.wait_ready()


def _met(first: Replica, second: Replica) -> bool:
    return any("UnknownMemberId" in each for each in (*first.messages(), *second.messages()))


async def test_workers_frozen_for_longer_than_their_session_wake_and_go_on(shop: Processes, pool: Shoppers) -> None:
    victims, others = ([_one(shop, f"{kind}-{each}") for kind in MODULES] for each in (1, 2))
    moved = [_rebalances(other) for other in others]
    shopping = asyncio.create_task(keep_shopping_for(SESSION + 9, pool))
    await asyncio.sleep(1)
    for victim in victims:
        victim.kill(signal.SIGSTOP)
    await asyncio.sleep(SESSION + 4)
    for victim in victims:
        victim.kill(signal.SIGCONT)
    await shopping
    await pool.settled()
    for victim in victims:
        victim.wait_ready()
    for other, before in zip(others, moved, strict=True):
        assert _rebalances(other) > before, "it had the work of both meanwhile"


@pytest.mark.timeout(300)
async def test_rebalances_under_load(shop: Processes, pool: Shoppers) -> None:
    """A third worker of each kind joins, under a new name, works, and crashes; its partitions wait for its session.

    So the group is assigned again about every five seconds.
    """
    await keep_shopping_for(1, pool)
    done = asyncio.Event()
    began, answered, before = time.monotonic(), len(pool.first_told), await _generations(shop)
    shopping = asyncio.create_task(pool.keep_shopping(20, done.is_set))
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
    asked, told = await shopping, len(pool.first_told) - answered
    took = time.monotonic() - began
    await pool.settled()
    moved = {kind: after - before[kind] for kind, after in (await _generations(shop)).items()}
    print(f"a worker comes and dies, four times in {took:.0f} s: {told} of {asked} answered meanwhile")
    print(f"generations of the groups meanwhile: {moved}")
    assert told >= asked / 2
    assert min(moved.values()) >= 4, "whoever comes gets partitions of others"


async def _generations(shop: Processes) -> dict[str, int]:
    """The number of each group's last generation. No request returns it; this is what the groups' coordinator keeps."""
    groups = {shop.settings.prefix + kind: kind for kind in MODULES}
    found = dict.fromkeys(MODULES, 0)
    async for record in read_topic(shop.settings, ["__consumer_offsets"]):
        about, group = struct.unpack(">h", record.key[:2]), record.key[4:].decode(errors="replace")
        if about == (2,) and group in groups and record.value:  # 2: a group, and not one of its offsets
            version, length = struct.unpack(">hh", record.value[:4])
            assert version <= 3, "from 4 on a string is written in another way"
            [generation] = struct.unpack(">i", record.value[4 + length : 8 + length])
            found[groups[group]] = max(found[groups[group]], generation)
    return found


# ---- ends: how long shoppers wait -----------------------------------------------------------------------------------


async def test_a_failed_write_to_a_table_is_reported_and_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(asyncio, "set_event_loop_policy", lambda _: None)  # a process's own, and this one is ours
    worker = Worker(Settings(prefix="t."), "cart", topics=())
    faults, written = [OSError("planted")], asyncio.Event()

    def write() -> None:
        if faults:
            raise faults.pop()
        written.set()

    worker.add_table_writer(write)
    [(name, loop)] = worker._loops
    writing = asyncio.create_task(worker._restart_on_failure(name, loop))
    try:
        await asyncio.wait_for(written.wait(), 10)
    finally:
        writing.cancel()
    assert "writing failed, again in 0.2 s: OSError: planted" in caplog.messages


@pytest.mark.parametrize("kind", MODULES)
async def test_a_worker_that_is_killed_and_brought_back(kind: str, shop: Processes, pool: Shoppers) -> None:
    """The other one goes on: the dead one's place in the group is kept for it, as long as its session lasts.

    A worker that is ready before the session has ended keeps its partitions. A busy machine may take longer to start a
    process: then its partitions go to the other one and come back, which costs two rebalances and shows nothing. In
    that case the test tries again.
    """
    victim, other = _one(shop, f"{kind}-1"), _one(shop, f"{kind}-2")
    for _ in range(TRIES):
        noise = await _noise(pool)
        theirs, moved = await users_of(shop, kind, victim), _rebalances(other)
        shopping = asyncio.create_task(keep_shopping_for(10, pool))
        await asyncio.sleep(1)
        began = time.monotonic()
        ready = await _kill_and_wait(victim)
        await shopping
        await pool.settled()
        in_time = ready < SESSION - HEARTBEAT
        bound = KILLED if in_time else KILLED + ready
        _compare(f"kill -9 {kind}, ready again after {ready:.2f} s", bound, noise, pool, began, theirs)
        if in_time:
            assert _rebalances(other) == moved, "its place was not kept"
            break


async def _kill_and_wait(victim: Replica) -> float:
    """Kill a worker that is brought back; how many seconds later it is ready again."""
    deaths, began = len(victim.exits), time.monotonic()
    victim.kill()
    await asyncio.to_thread(until, lambda: len(victim.exits) > deaths and victim.health() == "ok")
    return time.monotonic() - began


@pytest.mark.parametrize("kind", MODULES)
async def test_a_worker_that_is_killed_for_good(kind: str, shop: Processes, pool: Shoppers) -> None:
    """The partitions of the frozen worker go to the other one when its session is over."""
    noise = await _noise(pool)
    victim = _one(shop, f"{kind}-1")
    theirs = await users_of(shop, kind, victim)
    victim.kept = False
    shopping = asyncio.create_task(keep_shopping_for(14, pool))
    await asyncio.sleep(1)
    victim.kill()
    began = time.monotonic()
    await shopping
    await pool.settled()
    _compare(f"kill -9 {kind}, for good", KILLED, noise, pool, began, theirs)
    victim.again()


@pytest.mark.parametrize("kind", MODULES)
async def test_a_worker_that_is_asked_to_end_under_load(kind: str, shop: Processes, pool: Shoppers) -> None:
    """The successor is kept away for longer than a session: the group would wait for a member that did not leave."""
    noise = await _noise(pool)
    victim = _one(shop, f"{kind}-1")
    theirs = await users_of(shop, kind, victim)
    shopping = asyncio.create_task(keep_shopping_for(SESSION + 4, pool))
    await asyncio.sleep(1)
    began = time.monotonic()
    status = await asyncio.to_thread(victim.stop)
    ended = time.monotonic() - began
    await shopping
    await pool.settled()
    assert status == 0, victim.log_tail()
    _compare(f"SIGTERM {kind}, ended in {ended:.2f} s", LEFT, noise, pool, began, theirs)
    shopping = asyncio.create_task(keep_shopping_for(5, pool))
    began = time.monotonic()
    victim.start()
    victim.kept = True
    await shopping
    await pool.settled()
    print(f"its successor: one request waited {pool.longest_wait(began):.2f} s")


async def test_all_are_asked_to_end_at_once(shop: Processes, pool: Shoppers) -> None:
    """The first that leaves puts the other into a rebalance in the middle of its end."""
    await keep_shopping_for(2, pool)
    shopping = asyncio.create_task(keep_shopping_for(3, pool))
    statuses = await asyncio.gather(*(asyncio.to_thread(replica.stop) for replica in shop.replicas))
    assert statuses == [0] * len(shop.replicas), [replica.log_tail() for replica in shop.replicas]
    for replica in shop.replicas:
        replica.start()
        replica.kept = True
    await shopping
    await pool.settled()


async def test_a_stopped_worker_leaves_its_group_at_once_and_the_last_one_does_not(
    shop: Processes, pool: Shoppers
) -> None:
    """The others need not wait for the session's end; and whom nobody can take over from is not missed."""
    await keep_shopping_for(1, pool)
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


async def test_the_last_units_were_wanted_while_all_that_happened(shop: Processes) -> None:
    """Where nobody is ever refused for want of stock, nothing could have been sold twice."""
    assert await refused(shop.settings) > 0


async def _members(shop: Processes, kind: str) -> tuple[set[str], str]:
    """The replicas in the group of a service, and the group's state, as the broker knows them."""
    members, state = await assigned_partitions(shop, kind)
    return set(members), state


def _compare(
    what: str, bound: float, noise: float, pool: Shoppers, since: float, theirs: Callable[[str], bool]
) -> None:
    """Say how long shoppers have waited, and hold the victim's own to their bound.

    The waits of other shoppers are not an excuse: a fault that stops both workers would bring its own.
    """
    waited, silence = pool.longest_wait(since, of=theirs), pool.silence(since, of=theirs)
    others = pool.longest_wait(since, of=lambda user: not theirs(user))
    print(f"{what}: silence {silence:.2f} s; one request waited {waited:.2f} s of at most {bound:.0f},")
    print(f"    one of others' {others:.2f} s, and before the fault one {noise:.2f} s")
    assert max(waited, silence) <= bound + min(noise, NOISE)


@pytest.mark.parametrize("fault", [ProxyFault(refuse=True), ProxyFault(hole=True)], ids=["refuses", "silent"])
async def test_asked_to_end_while_postgres_is_away_nothing_is_lost(
    fault: ProxyFault, servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    """The requests in hand can't be decided: the end is hard, and the next process reads it again.

    Holds come straight from here: a cart would retry one that was acknowledged and dropped.
    """
    url = urlsplit(servers.postgres_url)
    with proxy(f"{url.hostname}:{url.port}") as between, processes(servers, settings, tmp_path) as here:
        here.seed(MUG=300)
        await ensure_topics(settings, [REQUESTS])
        away = url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{between.port}").geturl()
        worker = here.add(MODULES["inventory"], "inventory-1", HOLDFAST_POSTGRES_URL=away)
        worker.again()
        await _fill(settings, 0, 100)
        await _committed(here, worker)
        between.fault = fault
        between.reset()
        batches = worker.metric("holdfast_batch_size_count")
        await _fill(settings, 100, 200)
        until(lambda: worker.metric("holdfast_batch_size_count") > batches)
        assert worker.health("/livez") == "ok", "it tries again and again"
        began = time.monotonic()
        status = await asyncio.to_thread(worker.stop)
        print(f"SIGTERM without Postgres: status {status} after {time.monotonic() - began:.1f} s")
        assert status == EX_TEMPFAIL, worker.log_tail()
        between.fault = ProxyFault()
        worker.again()
        await _committed(here, worker)
        assert await _decided(settings) == (300, 300), "acknowledged, and not decided"
    await clean_up(settings)


# ---- a backlog ------------------------------------------------------------------------------------------------------

BACKLOG = 6000
"""Requests that wait: more than a worker's queue and the batch in hand together hold."""


async def _fill(settings: Settings, first: int, count: int = BACKLOG) -> None:
    """Requests for a hold, as the cart sends them, of as many shoppers."""
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka, linger_ms=20) as producer:
        for number in range(first, first + count):
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
            place = partition(event.key)
            await producer.send(settings.topic(REQUESTS), event.encode(), event.key, partition=place)


async def _decided(settings: Settings) -> tuple[int, int]:
    """How many outcomes the request log has, and of how many requests."""
    schema = settings.schema_name("inventory")
    async with await AsyncConnection.connect(settings.postgres_url) as connection:
        counted = await connection.execute(f"SELECT count(*), count(DISTINCT requestid) FROM {schema}.request_log")
        [(outcomes, requests)] = await counted.fetchall()
        return outcomes, requests


async def test_two_workers_that_come_to_a_backlog_leave_nothing_of_it(
    servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    """One begins to drain, the other joins: queues are full and records in hand while all is assigned again."""
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
        assert await _decided(settings) == (rounds * BACKLOG, rounds * BACKLOG)
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
        stuck = here.add("tests.testkit.stuck_worker", "one")
        stuck.start()
        assert stuck.health() in {"silent", "starting or stopping", "no partitions assigned"}
        stuck.wait_ready()
        async with shoppers(settings) as pool:
            for number in range(3):
                await pool.ask(f"user-{number}", "check", product=product, session="s")
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
    monkeypatch.setattr(
        health_tracker, "UNHEALTHY_LIMIT_SECONDS", 3.0
    )  # seconds: two looks of the watchdog and some of ours
    told: queue.SimpleQueue[Event] = queue.SimpleQueue()
    root = Root(tmp_path / "root")
    root.create()
    environment = {**servers.environment(), "HOLDFAST_PREFIX": settings.prefix, "STUCK_IN": fault}
    stuck = services.WorkerProcess(
        root, services.ServiceType("stuck", "tests.testkit.stuck_worker"), "stuck", probes.free_port(), environment
    )
    keeper = Watchdog(stuck, told.put, lambda: None)
    keeper.start()
    try:
        verdicts = set()
        async with shoppers(settings) as pool:
            while keeper.restarts == 0:
                verdicts.add(await asyncio.to_thread(_livez, stuck.port))
                for user in ("user-0", "user-1"):
                    await pool.ask(user, "check", product="GRACE", session="s")
                await asyncio.sleep(0.05)
        event = await asyncio.to_thread(_next, told, "lost")
        assert any(each.startswith(verdict) for each in verdicts), (verdicts, event, root.log_file("stuck").read_text())
        assert ("unhealthy" in event.text) == (verdict != "silent"), event.text
        await asyncio.to_thread(_next, told, "ready")
    finally:
        await asyncio.to_thread(keeper.stop, 10, threading.Event())
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
