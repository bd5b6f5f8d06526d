"""The edge as a process on real servers, and a small stand-in for the carts behind it."""

import asyncio
import functools
import json
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from contracts import cart, inventory, orders, payments
from contracts.envelope import Envelope
from contracts.topics import Topic
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.settings import Settings
from rest_api.__main__ import TOPICS
from rest_api.kafka.gateway import all_partitions
from tests.testkit.fake_orders import PRICE, SCARCE, FakeOrders, OutgoingRecord
from tests.testkit.processes import Processes, Replica, clean_up, processes
from tests.testkit.servers import Servers

READ = (cart.REQUESTS, inventory.REQUESTS, orders.REQUESTS, payments.REQUESTS)
SILENT, BRIEF = "SILENT", "BRIEF"
"""Products of which the stand-in never says anything, and which a cart keeps for 90 seconds; of SCARCE it has none."""


class Carts:
    """Answers cart requests as the contract says, from memory; on a loop of its own, as the real ones are elsewhere."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.requests: list[Envelope] = []
        self.silent = threading.Event()
        self._lines: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._versions: defaultdict[str, int] = defaultdict(int)
        self._log: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
        self._open: dict[str, dict[str, str]] = defaultdict(dict)
        self.desk = FakeOrders()
        self.asked: list[Envelope] = []
        """Messages on other topics than the carts'."""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)
        self._loop.close()

    def publish(self, topic: Topic, source: str, kind: str, key: str, data: dict[str, Any]) -> None:
        """Send any record, as another service would."""
        event = Envelope(id=f"{key}/{time.time_ns()}", source=source, type=kind, subject=key, time=NOW(), data=data)
        asyncio.run_coroutine_threadsafe(self._send(topic, event), self._loop).result(20)

    def answer(self, user_id: str, request_id: str, kind: str, data: dict[str, Any]) -> None:
        """Answer a request to the carts, such as one for SILENT."""
        name = f"{user_id}/{request_id}/{kind}"
        event = Envelope(
            id=name,
            source="/cart",
            type=f"holdfast.cart.{kind}",
            subject=user_id,
            time=NOW(),
            requestid=request_id,
            data=data,
        )
        asyncio.run_coroutine_threadsafe(self._send(cart.RESPONSES, event), self._loop).result(20)

    async def _send(self, topic: Topic, event: Envelope) -> None:
        await self._producer.send_and_wait(self.settings.topic(topic), event.encode(), key=event.key)

    async def _run(self) -> None:
        self._task = asyncio.current_task() or asyncio.Task(self._run())
        await ensure_topics(self.settings, TOPICS)
        self._producer = AIOKafkaProducer(bootstrap_servers=self.settings.kafka, linger_ms=0)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka, auto_offset_reset="earliest")
        await self._producer.start()
        await consumer.start()
        consumer.assign([each for topic in READ for each in all_partitions(self.settings, topic)])
        self._ready.set()
        try:
            async for record in consumer:
                event = Envelope.decode(record.key, record.value)
                if record.topic != self.settings.topic(cart.REQUESTS):
                    self.asked.append(event)
                    for told in self.desk.answers(event):
                        await self._tell(event, told)
                    continue
                cart.REQUEST_REGISTRY.parse(event)
                self.requests.append(event)
                if not self.silent.is_set():
                    for kind, data in self._answers(event):
                        await self._reply(event, kind, data)
                        if kind == "order" and not data.get("replayed"):
                            for told in self.desk.placed(event, self._log[event.subject, data["id"]][1]):
                                await self._tell(event, told)
        except asyncio.CancelledError:
            pass
        finally:
            await consumer.stop()
            await self._producer.stop()

    async def _reply(self, request: Envelope, kind: str, data: dict[str, Any]) -> None:
        event = Envelope(
            id=f"{request.id}/{kind}",
            source="/cart",
            type=f"holdfast.cart.{kind}",
            subject=request.subject,
            time=NOW(),
            requestid=request.requestid,
            traceparent=request.traceparent,
            data={"user_id": request.subject, **data},
        )
        await self._send(cart.RESPONSES, event)

    async def _tell(self, request: Envelope, told: OutgoingRecord) -> None:
        event = Envelope(
            id=f"{told.key}/{request.requestid}/{told.kind}",
            source=told.source,
            type=told.kind,
            subject=told.key,
            time=NOW(),
            requestid=request.requestid,
            data=told.data,
        )
        await self._send(told.topic, event)

    def _answers(self, event: Envelope) -> Iterator[tuple[str, dict[str, Any]]]:
        user, name, verb = event.subject, event.requestid or "", event.type.rpartition(".")[2]
        asked = {key: value for key, value in event.data.items() if key not in {"user_id", "session"}}
        session = {"session": event.data.get("session")}
        match verb:
            case "checkout":
                yield from self._checkout(user, name, asked)
            case "read":
                yield "snapshot", {"id": name, **session, "cart": self._view(user)}
            case "check":
                yield "availability", {"id": name, **session, "product": asked["product"], "available": 7}
            case "lookup":
                known = [wanted for wanted in asked["ids"] if (user, wanted) in self._log]
                told = [{"id": wanted, "outcome": self._log[user, wanted][1]} for wanted in known]
                waiting = [wanted for wanted in asked["ids"] if wanted in self._open[user]]
                unknown = [wanted for wanted in asked["ids"] if wanted not in {*known, *waiting}]
                answer = {"outcomes": told, "pending": waiting, "unknown": unknown}
                yield "resumed", {"id": name, **session, "cart": self._view(user), **answer}
            case _:
                yield from self._change(user, name, verb, asked)

    def _checkout(self, user: str, name: str, asked: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        if any(item["product"] == SILENT for item in asked.get("items", ())):
            self._open[user][name] = "checkout"
            return
        replayed = (user, name) in self._log
        if not replayed:
            self._log[user, name] = {}, self._commit(user, asked)
        outcome = self._log[user, name][1]
        again = {"replayed": True} if replayed else {}
        if outcome["type"] == "refused":
            yield "refused", {"id": name, **outcome, **again}
            return
        order = {"order_id": outcome["order_id"], "status": "committed", "order_version": 2}
        yield "order", {"id": name, **order, **again}
        yield "snapshot", {"cart": self._view(user)}

    def _commit(self, user: str, asked: dict[str, Any]) -> dict[str, Any]:
        lines = {item["product"]: item["quantity"] for item in asked.get("items", ())} or self._lines[user]
        amount = sum(lines.values()) * PRICE["amount"]
        expected = asked.get("expect", {}).get("total", {}).get("amount", amount)
        refusals = {
            "cart_changed": "items" not in asked and asked.get("version") != self._versions[user],
            "cart_empty": not lines,
            "total_changed": expected != amount,
            "out_of_stock": SCARCE in lines,
        }
        refused = {"type": "refused", "order_id": asked["order_id"]}
        for reason, is_so in refusals.items():
            if is_so:
                return {**refused, "reason": reason}
        taken = [{"product": code, "quantity": count, "price": PRICE} for code, count in lines.items()]
        if "items" not in asked:
            self._versions[user] += 1
            lines.clear()
        return {
            "type": "committed",
            "order_id": asked["order_id"],
            "purpose": "order",
            "lines": taken,
            "total": {**PRICE, "amount": amount},
            "version": self._versions[user],
        }

    def _change(self, user: str, name: str, verb: str, asked: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        command = {"verb": verb, **asked}
        if asked.get("product") == SILENT:
            self._open[user][name] = verb
            return
        if (user, name) in self._log:
            first, outcome = self._log[user, name]
            if first != command:
                yield "error", {"id": name, "code": "id_reused", "detail": "used before"}
                return
            yield outcome["type"], {"id": name, **outcome, "replayed": True}
            return
        outcome = self._decide(user, verb, asked)
        self._log[user, name] = command, outcome
        yield outcome["type"], {"id": name, **outcome}

    def _decide(self, user: str, verb: str, asked: dict[str, Any]) -> dict[str, Any]:
        product, quantity, lines = asked.get("product", ""), asked.get("quantity", 0), self._lines[user]
        if product == SCARCE:
            return {"type": "refused", "product": product, "reason": "out_of_stock", "available": 0}
        self._versions[user] += 1
        if verb == "clear":
            lines.clear()
            return {"type": "removed", "version": self._versions[user]}
        if verb == "remove" or (verb == "set" and not quantity):
            lines.pop(product, None)
            return {"type": "removed", "product": product, "version": self._versions[user]}
        lines[product] = quantity + (lines.get(product, 0) if verb == "add" else 0)
        return {
            "type": "held",
            "product": product,
            "quantity": quantity,
            "line_quantity": lines[product],
            "expires_at": _end(lines),
            "version": self._versions[user],
        }

    def _view(self, user: str) -> dict[str, Any]:
        lines = self._lines[user]
        waiting = [{"id": name, "type": verb, "since": END} for name, verb in self._open[user].items()]
        return {
            "version": self._versions[user],
            "expires_at": _end(lines) if lines else None,
            "lines": [{"product": code, "quantity": count, "price": PRICE} for code, count in lines.items()],
            "pending": waiting,
        }


def NOW() -> datetime:  # noqa: N802 - reads as the constant that it nearly is
    return datetime.now(UTC)


END = (datetime.now(UTC) + timedelta(days=1)).isoformat()
"""The end of any other cart, later than the end of the longest run of the tests: no shopper is warned of it."""


@functools.cache
def soon() -> str:
    """The end of a cart that is near: 90 seconds from when it is first asked for, the same ever after."""
    return (datetime.now(UTC) + timedelta(seconds=90)).isoformat()


def _end(lines: dict[str, int]) -> str:
    return soon() if BRIEF in lines else END


@dataclass
class Running:
    """An edge that runs, with the fake carts behind it."""

    url: str
    shop: Processes
    replica: Replica
    carts: Carts

    @property
    def settings(self) -> Settings:
        return self.shop.settings

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self.replica.process is not None
        return self.replica.process

    @property
    def log(self) -> list[str]:
        """The logged lines."""
        return self.replica.log.read_text().splitlines()

    @property
    def port(self) -> int:
        return self.replica.port

    def client(self, token: str | None = None, **more: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=40, trust_env=False, **more)

    def guest(self) -> dict[str, str]:
        with self.client() as client:
            found: dict[str, str] = client.post("/v1/guests").json()
        return found


@contextmanager
def running_edge(
    servers: Servers, prefix: str, max_descriptors: int | None = None, /, **more: str
) -> Iterator[Running]:
    """An edge on a port that it chose, ready; gone afterwards with its topics and tables."""
    settings = servers.settings(prefix)
    carts = Carts(settings)
    environment = {"HOLDFAST_LIMITS": "on", "HOLDFAST_HTTP_PORT": "0", "HOLDFAST_HEALTH_PORT": "0", **more}
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-edge-") as folder,
        processes(servers, settings, Path(folder), **environment) as shop,
    ):
        carts.start()
        replica = shop.add("rest_api", "edge")
        replica.max_descriptors = max_descriptors
        replica.start()
        try:
            running = Running(replica.wait_for_url(), shop, replica, carts)
            replica.wait_ready()
            yield running
        finally:
            status = replica.stop()
            log = replica.log.read_text().splitlines()
            carts.stop()
            asyncio.run(clean_up(settings))
    assert status == 0, log[-5:]
    assert not [line for line in log if "shutdown failed" in line]


def frame(text: str | bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found
