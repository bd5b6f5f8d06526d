"""Postgres, Redis and Kafka gone, slow, cut off and back, and a worker whose clock is wrong.

The servers are these tests' own: they are killed, stopped and flushed here. Each test asks for changes before, during
and after the fault; every one of them has exactly one outcome, the stock adds up, the carts equal the holds, and all
of it comes back by itself: nobody starts a service again but the supervisor.
"""

import asyncio
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from redis import Redis

from contracts import cart, inventory
from contracts.envelope import Envelope
from contracts.topics import Topic
from infrastructure.local import processes as system
from infrastructure.local.servers import port_reservations
from infrastructure.local.servers.kafka import Kafka
from infrastructure.local.servers.server import Server
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.settings import Settings
from tests.testkit.processes import PATIENCE, Processes, processes
from tests.testkit.servers import PARTITIONS, Servers, bring, local_parts
from tests.testkit.tcp_proxy import Proxy, ProxyFault, proxy
from tests.testkit.topic_client import Shoppers, refused, shoppers


class ProxiedKafka(Kafka):
    """A broker with a second listener, which directs its clients to the proxy for every further connection."""

    def __init__(self, like: Server, stack: ExitStack) -> None:
        super().__init__(like.root, like.port, like.secrets)
        self.second = port_reservations.reserve_free_port()
        self.proxy = stack.enter_context(proxy(f"127.0.0.1:{self.second}"))

    def properties(self) -> dict[str, object]:
        own = super().properties()
        return {
            **own,
            "listeners": f"{own['listeners']},PROXIED://127.0.0.1:{self.second}",
            "advertised.listeners": f"{own['advertised.listeners']},PROXIED://127.0.0.1:{self.proxy.port}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
        }


class Dependencies:
    """Three servers of our own with a proxy before each, and a shop that knows only the proxies."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.parts = {part.name: part for part in local_parts(folder)}
        kafka = ProxiedKafka(self.parts["kafka"], stack)
        self.parts["kafka"] = kafka
        self.started: list[subprocess.Popen[bytes]] = []
        self.postgres, self.redis = self._before("postgres", stack), self._before("redis", stack)
        self.kafka = kafka.proxy
        for part in self.parts.values():
            bring(part, self.started)
        self.servers = Servers(
            f"127.0.0.1:{self.kafka.port}",
            _through(self.parts["postgres"].url(), self.postgres),
            _through(self.parts["redis"].url(), self.redis),
        )

    def _before(self, name: str, stack: ExitStack) -> Proxy:
        return stack.enter_context(proxy(f"127.0.0.1:{self.parts[name].port}"))

    def process(self, name: str) -> psutil.Process:
        """Return the server itself; the started process may be a wrapper around it."""
        port = self.parts[name].port
        for child in self.started:
            if child.poll() is None and system.is_listening(psutil.Process(child.pid), port):
                return psutil.Process(child.pid)
        raise LookupError(name)

    def kill(self, name: str) -> None:
        """kill -9 of a server and all that it started."""
        system.kill(self.process(name))

    def revive(self, name: str) -> None:
        """Start it again on its data."""
        bring(self.parts[name], self.started)

    def close(self) -> None:
        """End all servers at once."""
        for child in self.started:
            if child.poll() is None:
                system.kill(psutil.Process(child.pid))
            child.wait()


def _through(url: str, between: Proxy) -> str:
    parsed = urlsplit(url)
    return parsed._replace(netloc=parsed.netloc.replace(f":{parsed.port}", f":{between.port}")).geturl()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dependencies]:
    with ExitStack() as stack:
        here = Dependencies(tmp_path_factory.mktemp("servers"), stack)
        stack.callback(here.close)
        yield here


@pytest.fixture(scope="module")
def shop(own: Dependencies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """One cart worker, two of the inventory: these two contend for the locks, and each change of stock needs one."""
    settings = Settings(
        kafka=own.parts["kafka"].url(),  # the tests themselves look past the proxies
        postgres_url=own.parts["postgres"].url(),
        redis_url=own.servers.redis_url,
        prefix=f"t{secrets.token_hex(3)}.",
    )
    with processes(own.servers, settings, tmp_path_factory.mktemp("shop"), HOLDFAST_LOCK_ABOVE="0") as here:
        here.seed(MUG=100_000, HOT=10)
        here.start("cart_service", "cart-1")
        here.start("inventory_service", "inventory-1", "inventory-2")
        for replica in here.replicas:
            replica.wait_ready()
        yield here


@pytest.fixture
async def pool(own: Dependencies, shop: Processes) -> AsyncIterator[Shoppers]:
    """Shoppers who shop before the fault and after it, and count in the end."""
    async with shoppers(shop.settings) as here:
        await _for(1, here)
        await here.settled()
        yield here
        assert (own.kafka.fault, own.postgres.fault, own.redis.fault) == (ProxyFault(), ProxyFault(), ProxyFault())
        await _for(1, here)
        began = time.monotonic()
        await here.settled()
        print(f"all answered {time.monotonic() - began:.1f} s after the last request")
        await here.check()
    for replica in shop.replicas:
        replica.wait_ready()


async def _for(seconds: float, pool: Shoppers, rate: float = 20) -> None:
    began = time.monotonic()
    await pool.keep_shopping(rate, lambda: time.monotonic() > began + seconds)


async def _while(pool: Shoppers, fault: Callable[[], object], seconds: float) -> None:
    """Shop for some time; the fault happens at once, beside it."""
    shopping = asyncio.create_task(_for(seconds, pool))
    await asyncio.to_thread(fault)
    await shopping


async def _counted(shop: Processes, name: str, **labels: str) -> dict[str, float]:
    """Return a counter of each inventory worker."""
    workers = [replica for replica in shop.replicas if replica.module == "inventory_service"]
    return {worker.name: await asyncio.to_thread(worker.metric, name, **labels) for worker in workers}


async def _until_counted(shop: Processes, pool: Shoppers, name: str, **labels: str) -> None:
    """Shop until each worker of the inventory has counted one more."""
    before = await _counted(shop, name, **labels)
    end = time.monotonic() + PATIENCE
    while any(after <= before[worker] for worker, after in (await _counted(shop, name, **labels)).items()):
        assert time.monotonic() < end, f"{name}{labels} stays at {before}"
        await _for(0.3, pool)


@contextmanager
def _with_fault(line: Proxy, fault: ProxyFault) -> Iterator[None]:
    line.fault = fault
    try:
        yield
    finally:
        line.fault = ProxyFault()


# ---- Redis ----------------------------------------------------------------------------------------------------------

LOCKS = "holdfast_locks_total"


async def _answered_without_locks(shop: Processes, pool: Shoppers) -> None:
    """Each worker finds that it can have no lock, and the shop goes on: all are answered before there is one again."""
    await _until_counted(shop, pool, LOCKS, result="away")
    held = await _counted(shop, LOCKS, result="held")
    await _for(1, pool)
    await pool.settled()
    assert await _counted(shop, LOCKS, result="held") == held


async def test_redis_is_killed_and_comes_back(own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    await _until_counted(shop, pool, LOCKS, result="held")
    await _while(pool, lambda: own.kill("redis"), 1)
    try:
        await _answered_without_locks(shop, pool)
    finally:
        await asyncio.to_thread(own.revive, "redis")
    await _until_counted(shop, pool, LOCKS, result="held")


async def test_redis_forgets_everything(own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    with Redis.from_url(own.parts["redis"].url()) as redis:

        def flush() -> None:
            for _ in range(40):
                redis.flushall()
                time.sleep(0.05)

        before = await _counted(shop, LOCKS, result="held")
        await _while(pool, flush, 2)
    after = await _counted(shop, LOCKS, result="held")
    assert all(after[worker] > held for worker, held in before.items()), "locks were taken while others were forgotten"
    await _until_counted(shop, pool, LOCKS, result="held")


async def test_redis_is_paused_for_longer_than_a_lock_lives(own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    answered = len(pool.first_told)
    before = await _counted(shop, LOCKS, result="away")
    with Redis.from_url(own.parts["redis"].url()) as redis:
        redis.execute_command("CLIENT", "PAUSE", "4000", "ALL")
        await _for(3, pool)
        assert len(pool.first_told) > answered, "the shop goes on without it"
        redis.ping()  # it answers when it is no longer paused
    after = await _counted(shop, LOCKS, result="away")
    assert all(after[worker] > away for worker, away in before.items()), "nobody noticed"
    await _until_counted(shop, pool, LOCKS, result="held")


@pytest.mark.parametrize(
    "fault",
    [ProxyFault(delay=0.1), ProxyFault(hole=True), ProxyFault(drop=True), ProxyFault(refuse=True)],
    ids=["slow", "hole", "drops", "refuses"],
)
async def test_redis_behind_a_faulty_connection(
    fault: ProxyFault, own: Dependencies, shop: Processes, pool: Shoppers
) -> None:
    with _with_fault(own.redis, fault):
        own.redis.reset()
        await _answered_without_locks(shop, pool)
    await _until_counted(shop, pool, LOCKS, result="held")


# ---- Postgres -------------------------------------------------------------------------------------------------------


async def test_postgres_is_killed_and_comes_back(own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    def fault() -> None:
        own.kill("postgres")
        time.sleep(2)
        assert {replica.health("/livez") for replica in shop.replicas} == {"ok"}, "who tries again is alive"
        own.revive("postgres")

    began = time.monotonic()
    await _while(pool, fault, 6)
    await pool.settled()
    print(f"Postgres killed for 2 s: silence {pool.silence(began):.1f} s")


async def test_connections_to_postgres_are_ended_again_and_again(
    own: Dependencies, shop: Processes, pool: Shoppers
) -> None:
    def storm() -> None:
        with psycopg.connect(own.parts["postgres"].url(), autocommit=True) as connection:
            ended = 0
            for _ in range(30):
                found = connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s",
                    (f"{shop.settings.prefix}inventory/%",),
                ).fetchall()
                ended += len(found)
                time.sleep(0.1)
        assert ended > 10

    await _while(pool, storm, 4)


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (ProxyFault(delay=0.025), 3),
        (ProxyFault(hole=True), 3),
        (ProxyFault(bandwidth=20_000), 3),
        (ProxyFault(refuse=True), 3),
    ],
    ids=["50 ms a round trip", "black hole", "little bandwidth", "refuses"],
)
async def test_postgres_behind_a_faulty_connection(
    fault: ProxyFault, seconds: float, own: Dependencies, shop: Processes, pool: Shoppers
) -> None:
    own.postgres.fault = fault
    if fault.refuse:
        own.postgres.reset()
    await _for(seconds, pool)
    own.postgres.fault = ProxyFault()


async def test_postgres_behind_a_connection_that_loses_everything(
    own: Dependencies, shop: Processes, pool: Shoppers
) -> None:
    """Neither end of the connection notices: a client that waits gives up by its own deadline, repeatedly."""
    with _with_fault(own.postgres, ProxyFault(drop=True)):
        began, asked = time.monotonic(), set(pool.sent)
        await _until_counted(shop, pool, "holdfast_retries_total", error="TimeoutError")
        print(f"each worker gave up within {time.monotonic() - began:.1f} s of silence")
        assert pool.sent.keys() - asked
        assert not pool.told.keys() - asked, "nothing came through"


async def test_connections_to_postgres_are_reset_in_mid_transaction(
    own: Dependencies, shop: Processes, pool: Shoppers
) -> None:
    """A reset leaves open if a COMMIT arrived; the request log has the answer."""

    def resets() -> None:
        own.postgres.fault = ProxyFault(delay=0.02)  # so that most resets meet a transaction
        for _ in range(20):
            time.sleep(0.15)
            own.postgres.reset()
        own.postgres.fault = ProxyFault()

    await _while(pool, resets, 4)


# ---- Kafka ----------------------------------------------------------------------------------------------------------


async def test_kafka_is_killed_and_comes_back(own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    """Acknowledged records are still there; the idempotent producer sends the others again."""

    def fault() -> None:
        own.kill("kafka")
        time.sleep(1)
        own.revive("kafka")

    began = time.monotonic()
    await _while(pool, fault, 8)
    await pool.settled()
    print(f"Kafka killed for 1 s: silence {pool.silence(began):.1f} s")


async def test_kafka_stops_for_longer_than_a_session(own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    def fault() -> None:
        kafka = own.process("kafka")
        kafka.send_signal(signal.SIGSTOP)
        time.sleep(9)
        kafka.send_signal(signal.SIGCONT)

    began = time.monotonic()
    await _while(pool, fault, 11)
    await pool.settled()
    print(f"Kafka stopped for 9 s: silence {pool.silence(began):.1f} s")


async def test_kafka_stops_again_and_again(own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    def fault() -> None:
        kafka = own.process("kafka")
        for _ in range(10):
            kafka.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            kafka.send_signal(signal.SIGCONT)
            time.sleep(0.2)

    await _while(pool, fault, 7)


@pytest.mark.parametrize(
    "fault", [ProxyFault(delay=0.05), ProxyFault(bandwidth=50_000)], ids=["100 ms a round trip", "little bandwidth"]
)
async def test_kafka_behind_a_slow_connection(
    fault: ProxyFault, own: Dependencies, shop: Processes, pool: Shoppers
) -> None:
    """The shop goes on meanwhile: what is asked on the slow line is answered on it."""
    with _with_fault(own.kafka, fault):
        began = time.monotonic()
        await _for(5, pool)
        await pool.settled()
        print(f"longest wait {pool.longest_wait(began):.1f} s")


@pytest.mark.parametrize(
    "fault", [ProxyFault(hole=True), ProxyFault(drop=True), ProxyFault(refuse=True)], ids=["hole", "drops", "refuses"]
)
async def test_kafka_behind_a_dead_connection(
    fault: ProxyFault, own: Dependencies, shop: Processes, pool: Shoppers
) -> None:
    """For longer than a session: who cannot say that he is there has lost his partitions when the line is back."""
    await pool.settled()
    with _with_fault(own.kafka, fault):
        if fault.refuse:
            own.kafka.reset()
        await asyncio.sleep(1)  # outcomes in flight arrive
        asked = set(pool.sent)
        await _for(9, pool)
        assert pool.sent.keys() - asked
        assert not pool.told.keys() - asked, "nothing came through"
    began = time.monotonic()
    await pool.settled()
    print(f"all answered {time.monotonic() - began:.1f} s after the line was back")


async def test_connections_to_kafka_are_reset_while_sending(own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    """A reset leaves open if a batch arrived: the idempotent producer sends it again, and it counts once."""

    def resets() -> None:
        with _with_fault(own.kafka, ProxyFault(delay=0.02)):  # so that most resets meet something on its way
            ends = 0
            for _ in range(20):
                time.sleep(0.15)
                ends += own.kafka.reset()
        assert ends > 20

    await _while(pool, resets, 4)


# ---- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [5, -5])
async def test_a_worker_whose_clock_is_wrong(minutes: int, own: Dependencies, shop: Processes, pool: Shoppers) -> None:
    """Postgres' clock decides: nothing expires early, no request is taken for one of tomorrow, nothing is lost."""
    wrong = [replica for replica in shop.replicas if replica.name in {"cart-1", "inventory-1"}]
    for replica in wrong:
        replica.again(HOLDFAST_CLOCK_SKEW_SECONDS=str(minutes * 60))
    await _for(3, pool)
    await pool.settled()
    assert await _clocks(pool, cart.REQUESTS) == {minutes}
    assert await _clocks(pool, inventory.REQUESTS) == {minutes, 0}, "inventory-2 has part of the work"
    assert not [key for key, told in pool.told.items() if told[0].get("reason") == "expired"]
    with psycopg.connect(shop.settings.postgres_url) as connection:
        connection.execute(f'SET search_path = "{shop.settings.schema_name("inventory")}"'.encode())
        [(expired,)] = connection.execute(
            "SELECT count(*) FROM request_log WHERE outcome->>'type' = 'expired'"
        ).fetchall()
        [(soon,)] = connection.execute(
            "SELECT count(*) FROM holder"
            " WHERE expires_at NOT BETWEEN now() + interval '1 minute' AND now() + interval '15 minutes'"
        ).fetchall()
    assert (expired, soon) == (0, 0)
    for replica in wrong:
        replica.again(HOLDFAST_CLOCK_SKEW_SECONDS="0")


async def _clocks(pool: Shoppers, topic: Topic) -> set[int]:
    """Return by how many minutes the clocks of a topic's senders are wrong, according to their dead letters."""
    name = pool.settings.topic(topic)
    sent = [await pool.producer.send_and_wait(name, b"no event", b"nobody", partition=at) for at in range(PARTITIONS)]
    places = {(record.partition, record.offset) for record in sent}
    times: list[float] = []
    async with asyncio.timeout(PATIENCE):
        while len(times) < len(places):
            letters = [
                record async for record in read_topic(pool.settings, [pool.settings.topic(topic.dead_letter_topic)])
            ]
            events = [(record.timestamp / 1000, Envelope.decode(record.key, record.value)) for record in letters]
            times = [
                event.time.timestamp() - stored
                for stored, event in events
                if (event.data["partition"], event.data["offset"]) in places
            ]
    return {round(seconds / 60) for seconds in times}


def test_every_replica_is_the_one_that_was_started_or_its_successor(shop: Processes) -> None:
    """No process has crashed on the way: those of the clock were ended on purpose."""
    crashes = {replica.name: replica.exits for replica in shop.replicas if replica.exits}
    assert crashes == {}, crashes


async def test_the_last_units_were_wanted_while_all_that_happened(shop: Processes) -> None:
    """Where nobody is ever refused for want of stock, nothing could have been sold twice."""
    assert await refused(shop.settings) > 0
