"""Kafka is away: the answers that shoppers get, and the recovery without help. The broker is one of this file's own."""

import asyncio
import json
import secrets
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from contracts.cart import RESPONSE_REGISTRY, RESPONSES
from contracts.topics import Topic
from infrastructure.messaging.broker import ConsumerCrashedError, ensure_topics
from infrastructure.messaging.consumers import create_consumer
from infrastructure.process.settings import Settings
from rest_api.__main__ import TOPICS
from rest_api.kafka.gateway import KafkaGateway, cart_request_envelope
from rest_api.protocol.effects import Publish
from rest_api.read_models import projector
from rest_api.read_models.projector import Projector
from rest_api.read_models.store import ReadPosition
from tests.testkit.edge import Running, running_edge
from tests.testkit.servers import start_local

OUTCOMES = {"held", "refused", "removed"}


class Broker:
    """The broker, which can be stopped, killed and started again on its port and data."""

    def __init__(self, process: psutil.Process, port: int) -> None:
        self.process = process
        self.port = port
        self._argv, self._cwd, self._environment = process.cmdline(), process.cwd(), process.environ()
        self._mine: subprocess.Popen[bytes] | None = None

    def suspend(self) -> None:
        self.process.suspend()

    def resume(self) -> None:
        self.process.resume()

    def kill(self) -> None:
        """As a power cut of the process: nothing is said to anybody."""
        self.process.kill()
        if self._mine is None:
            self.process.wait(10)
        else:
            self._mine.wait(10)

    def restart(self) -> None:
        self._mine = subprocess.Popen(
            self._argv, cwd=self._cwd, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.process = psutil.Process(self._mine.pid)

    def stop(self) -> None:
        """Restore the state in which the fixture of the first broker can clean up."""
        if self.process.is_running():
            self.process.resume()
        if self._mine is not None:
            self._mine.kill()
            self._mine.wait(10)


@pytest.fixture(scope="module")
def own() -> Iterator[tuple[Running, Broker]]:
    """An edge and its broker."""
    with tempfile.TemporaryDirectory(prefix="holdfast-outage-") as folder, start_local(Path(folder)) as servers:
        port = int(servers.kafka.rpartition(":")[2])
        children = psutil.Process().children(recursive=True)
        broker = Broker(next(child for child in children if _listens(child, port)), port)
        try:
            with running_edge(servers, "outage.", HOLDFAST_LIMITS="off") as edge:
                yield edge, broker
        finally:
            broker.stop()


def _listens(process: psutil.Process, port: int) -> bool:
    return any(line.laddr.port == port and line.status == psutil.CONN_LISTEN for line in process.net_connections())


def _open(edge: Running, token: str) -> ClientConnection:
    return connect(
        f"{edge.url.replace('http', 'ws')}/v1/stream",
        additional_headers={"Authorization": f"Bearer {token}"},
        proxy=None,
    )


def _receive(line: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line.recv(timeout=30))
    return found


def _until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def _until_ready(client: httpx.Client) -> None:
    _until(lambda: client.get("/readyz").status_code == 200)


def test_while_kafka_is_away_nothing_new_is_accepted_and_nothing_is_lost(own: tuple[Running, Broker]) -> None:
    edge, broker = own
    token = edge.guest()["token"]
    with _open(edge, token) as line, edge.client(token) as client:
        assert [_receive(line)["type"] for _ in range(2)] == ["welcome", "cart"]
        broker.suspend()
        add = {"id": "a1", "type": "add", "product": "P", "quantity": 2}
        line.send(json.dumps(add))
        error = _receive(line)
        assert (error["type"], error["id"], error["code"]) == ("error", "a1", "unavailable")
        assert error["retry_after"] >= 1

        refused = client.post("/v1/cart/items", json={"product": "P", "quantity": 2})
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/readyz").status_code == 503
        assert client.get("/v1/products").status_code == 200, "the catalogue can still be read"
        with _open(edge, edge.guest()["token"]) as other:
            with pytest.raises(ConnectionClosed) as caught:
                other.recv(timeout=20)
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1013, "retry_after=2")

        broker.resume()
        _until_ready(client)
        told = [_receive(line) for _ in range(2)]
        assert [frame["type"] for frame in told] == ["pending", "held"], "it was perhaps, and now it is"
        line.send(json.dumps(add))
        told = [_receive(line) for _ in range(2)]
        assert [(frame["type"], frame.get("version")) for frame in told] == [("pending", None), ("held", 1)]


class Adder:
    """A shopper who adds one unit at a time, and says again what was not surely accepted."""

    def __init__(self, edge: Running, token: str) -> None:
        self.edge = edge
        self.token = token
        self.said: dict[str, str] = {}
        self.pending: set[str] = set()
        self.answers: defaultdict[str, set[str]] = defaultdict(set)
        self.unavailable: set[str] = set()
        self.accepted_while_away: set[str] = set()
        self.away = False
        self.cart: dict[str, Any] = {}

    async def live(self, stop: asyncio.Event) -> None:
        url = f"{self.edge.url.replace('http', 'ws')}/v1/stream"
        headers = {"Authorization": f"Bearer {self.token}"}
        async with connect_async(url, additional_headers=headers, proxy=None) as line:
            listening = asyncio.create_task(self._listen(line))
            while not stop.is_set():
                await self._say(line, f"a{len(self.said)}")
                await asyncio.sleep(0.1)
            async with asyncio.timeout(60):
                while waiting := self.said.keys() - self.answers.keys():
                    for name in sorted(waiting & self.unavailable):
                        self.unavailable.discard(name)
                        await line.send(self.said[name])
                    await asyncio.sleep(0.2)
                await line.send(json.dumps({"id": "end", "type": "cart"}))
                while not self.cart:
                    await asyncio.sleep(0.05)
            listening.cancel()

    async def _say(self, line: Any, name: str) -> None:
        self.said[name] = json.dumps({"id": name, "type": "add", "product": "P", "quantity": 1})
        await line.send(self.said[name])

    async def _listen(self, line: Any) -> None:
        async for text in line:
            frame = json.loads(text)
            name = frame.get("id")
            if frame["type"] == "pending":
                self.pending.add(name)
                if self.away:
                    self.accepted_while_away.add(name)
            elif frame["type"] in OUTCOMES:
                frame.pop("replayed", None)
                self.answers[name].add(json.dumps(frame, sort_keys=True))
            elif frame["type"] == "error":
                assert frame["code"] == "unavailable", frame
                self.unavailable.add(name)
            elif name == "end":
                self.cart = frame


async def test_a_broker_that_is_killed_in_a_stream_of_adds_loses_none_and_doubles_none(
    own: tuple[Running, Broker],
) -> None:
    edge, broker = own
    stop = asyncio.Event()
    adders = [Adder(edge, edge.guest()["token"]) for _ in range(4)]
    lives = [asyncio.create_task(adder.live(stop)) for adder in adders]
    with edge.client(edge.guest()["token"]) as client:
        await asyncio.to_thread(_until, lambda: all(adder.pending for adder in adders))
        broker.kill()
        await asyncio.to_thread(_until, lambda: client.get("/readyz").status_code == 503)
        for adder in adders:
            adder.away = True
        first = sum(len(adder.pending) for adder in adders)
        key = {"Idempotency-Key": secrets.token_hex(8)}
        refused = await asyncio.to_thread(
            client.post, "/v1/cart/items", json={"product": "Q", "quantity": 5}, headers=key
        )
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        await asyncio.sleep(1)
        for adder in adders:
            adder.away = False
        broker.restart()
        await asyncio.to_thread(_until_ready, client)
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*lives)

        assert first > 0
        assert [adder.accepted_while_away for adder in adders] == [set()] * 4
        for adder in adders:
            assert adder.pending == adder.said.keys(), "all were accepted in the end"
            assert {name for name, told in adder.answers.items() if len(told) != 1} == set()
            assert adder.answers.keys() == adder.said.keys()
            (row,) = adder.cart["lines"]
            assert row["quantity"] == len(adder.said), "each was done, and done once"

        async def claim() -> httpx.Response:
            return await asyncio.to_thread(
                client.post,
                "/v1/cart/items",
                json={"product": "Q", "quantity": 5},
                headers={**key, "Prefer": "wait=10"},
            )

        first_answer, second_answer = await claim(), await claim()
        assert first_answer.status_code == second_answer.status_code == 200, "the claim was taken over"
        assert first_answer.json() == second_answer.json()
        assert client.get("/v1/cart").json()["lines"][0]["quantity"] == 5


def test_an_edge_that_starts_while_the_broker_is_away_becomes_ready_when_it_comes(own: tuple[Running, Broker]) -> None:
    edge, broker = own
    broker.kill()
    replica = edge.shop.add("rest_api", "second", HOLDFAST_LIMITS="on")
    replica.start()
    with httpx.Client(base_url=replica.wait_for_url(), trust_env=False, timeout=30) as client:
        _until(lambda: _answers(client))
        waiting = client.get("/readyz")
        assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "1")
        token = client.post("/v1/guests").json()["token"]
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.post("/v1/cart/items", json={"product": "P", "quantity": 1}).status_code == 503
        assert client.get("/v1/cart").status_code == 503
        broker.restart()
        _until_ready(client)
        done = client.post("/v1/cart/items", json={"product": "P", "quantity": 1}, headers={"Prefer": "wait=20"})
        assert (done.status_code, done.json()["type"]) == (200, "held")
    assert replica.stop() == 0
    with edge.client() as other:
        _until_ready(other)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


async def test_a_producer_that_has_died_is_replaced(own: tuple[Running, Broker]) -> None:
    edge, _ = own
    gateway = KafkaGateway(Settings(kafka=edge.settings.kafka, prefix=edge.settings.prefix))
    handled: list[object] = []

    async def handle(records: list[Any]) -> None:
        handled.extend(record.key for record in records)

    async def publish() -> bool:
        sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        event = cart_request_envelope("gw", Publish(secrets.token_hex(4), "remove", {"user_id": "gw", "product": "P"}))
        await gateway.publish(event, sent.set_result)
        return await sent

    await gateway.start(handle)
    await gateway.start(handle)  # a restarted consumer does not read twice
    try:
        assert await publish()
        gateway._producer._sender.sender_task.cancel()
        assert not await publish()
        async with asyncio.timeout(20):
            while not await publish():
                await asyncio.sleep(0.1)
            while len(handled) < 2:
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.2)
        assert handled == [b"gw"] * len(handled)
        assert len(handled) == 2, "one response for each request that was accepted"
    finally:
        await gateway.stop()


async def _sent(settings: Settings, topic: Topic, *keys: str) -> None:
    """Send a record for each of `keys`, as its own value."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, acks="all")
    await producer.start()
    try:
        for key in keys:
            await producer.send_and_wait(settings.topic(topic), key.encode(), key=b"gw")
    finally:
        await producer.stop()


def _deafen(consumer: AIOKafkaConsumer) -> None:
    """End the task that reads, as an error of aiokafka's own does: `getmany` finds nothing from then on."""
    consumer._fetcher._fetch_task.cancel()


async def test_a_gateway_whose_handler_failed_reads_on_from_its_position(settings: Settings) -> None:
    await ensure_topics(settings, TOPICS)
    gateway, heard = KafkaGateway(settings), list[str]()

    async def handle(records: list[Any]) -> None:
        heard.extend(record.value.decode() for record in records)
        if heard[-1] == "odd":
            raise RuntimeError("nobody thought of this one")

    await _sent(settings, RESPONSES, "before it came")
    await gateway.start(handle)
    try:
        await _sent(settings, RESPONSES, "one", "odd")
        await _within(20, lambda: heard == ["one", "odd"])
        for number in range(2):
            deaf = gateway._consumer
            _deafen(deaf)
            await _sent(settings, RESPONSES, f"in the silence {number}", f"and one more {number}")
            await _within(20, lambda number=number: heard[-1] == f"and one more {number}")  # type: ignore[misc]
            assert gateway._consumer is not deaf
        assert heard == [
            "one",
            "odd",
            *(f"{what} {n}" for n in range(2) for what in ("in the silence", "and one more")),
        ]
    finally:
        await gateway.stop()


async def test_a_read_model_that_reads_nothing_any_more_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The projector's loop then starts again, from the position in the store."""
    await ensure_topics(settings, TOPICS)
    taken: list[Sequence[ReadPosition]] = []
    made: list[AIOKafkaConsumer] = []

    def make(*arguments: Any, **options: Any) -> AIOKafkaConsumer:
        made.append(create_consumer(*arguments, **options))
        return made[-1]

    async def take(_: object, positions: Sequence[ReadPosition]) -> None:
        taken.append(positions)

    monkeypatch.setattr(projector, "create_consumer", make)
    no_store: Any = None
    topics = {RESPONSES: RESPONSE_REGISTRY}
    running = asyncio.create_task(Projector(settings, no_store, "a test", topics, take).run(()))
    try:
        await _sent(settings, RESPONSES, "one")
        await _within(20, lambda: bool(taken))
        _deafen(made[0])
        with pytest.raises(ConsumerCrashedError):
            await asyncio.wait_for(running, 20)
        assert not any(line.connected() for line in made[0]._client._conns.values()), "no line is left behind"
    finally:
        running.cancel()


async def _within(seconds: float, true: Callable[[], bool]) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)
