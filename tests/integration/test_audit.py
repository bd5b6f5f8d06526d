"""The audit on real servers: requests without an outcome, and the gauges of the audit in the background."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client import REGISTRY

from contracts import cart, inventory
from contracts.envelope import Envelope, Message
from contracts.topics import Topic
from infrastructure.audit.table_auditor import AUDIT_OPTIONS, TableAuditor
from infrastructure.messaging.broker import ensure_topics
from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from inventory_service.audit import find_violations
from tests.testkit.command import Holdfast
from tests.testkit.inventory_store import schema
from tests.testkit.processes import Processes, processes, until
from tests.testkit.servers import Servers
from tests.testkit.topic_client import shoppers


@pytest.fixture
def holdfast(servers: Servers, prefix: str, tmp_path: Path) -> Iterator[Holdfast]:
    """The command with a broker and a database, whose audit is impatient."""
    with Holdfast(
        tmp_path, **servers.environment(), HOLDFAST_PREFIX=prefix, HOLDFAST_AUDIT_GRACE_SECONDS="0"
    ) as command:
        yield command


async def send(settings: Settings, topic: Topic, source: str, message: Message) -> None:
    """One request of ann's."""
    event = Envelope(
        id="ann/r1",
        source=source,
        type=message.TYPE,
        subject="ann",
        time=datetime.now(UTC),
        requestid="r1",
        data=message.model_dump(mode="json"),
    )
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka)
    await producer.start()
    try:
        await producer.send_and_wait(settings.topic(topic), event.encode(), event.key)
    finally:
        await producer.stop()


async def test_unhandled_requests_are_reported_by_both_audits(holdfast: Holdfast, settings: Settings) -> None:
    await ensure_topics(settings, [cart.REQUESTS, inventory.REQUESTS])
    async with schema(settings):

        async def audit() -> tuple[int, list[str]]:
            status, answer, _ = await asyncio.to_thread(holdfast, "audit", "--json")
            return status, json.loads(answer)["violations"]

        assert (await asyncio.to_thread(holdfast, "migrate"))[0] == 0
        assert await audit() == (0, [])
        await send(settings, cart.REQUESTS, "/edge", cart.Add(user_id="ann", product="P", quantity=1))
        hold = inventory.Hold(user_id="ann", mode="add", product="P", quantity=1)
        await send(settings, inventory.REQUESTS, "/cart", hold)
        status, violations = await audit()
        assert status == 1
        of_cart, of_inventory = violations
        assert of_cart.startswith(f"request r1 of ann ({settings.topic(cart.REQUESTS)}/")
        assert of_inventory.startswith(f"request r1 of ann ({settings.topic(inventory.REQUESTS)}/")
        holdfast.environment["HOLDFAST_AUDIT_GRACE_SECONDS"] = "600"
        assert await audit() == (0, [])


async def test_without_a_broker_it_is_no_audit(holdfast: Holdfast) -> None:
    holdfast.environment["HOLDFAST_KAFKA"] = "127.0.0.1:1"
    status, answer, complaint = await asyncio.to_thread(holdfast, "audit", "--json")
    assert (status, answer) == (1, "")
    assert "Traceback" not in complaint


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"holdfast_audit_{name}", {"service": "inventory"})


async def test_the_background_audit_exports_its_findings_while_it_has_the_lock(settings: Settings) -> None:
    async with schema(settings) as here:
        await here.stock(TEAPOT=5)
        connect = partial(postgres.connect, settings, "inventory", options=AUDIT_OPTIONS)
        name = f"{settings.prefix}auditor"
        [first, second] = [
            TableAuditor(connect, name, 0.05, service="inventory", check=find_violations) for _ in range(2)
        ]
        assert gauge("violations") is None
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(auditor.run()) for auditor in (first, second)]
            while gauge("violations") != 0:
                await asyncio.sleep(0.01)
            await here.rows("UPDATE inventory SET received = 6 RETURNING 1")
            while gauge("violations") != 1:
                await asyncio.sleep(0.01)
            assert 0 <= (gauge("age_seconds") or 0) < 60
            assert (gauge("duration_seconds") or 0) > 0
            for loop in loops:
                loop.cancel()
        assert gauge("violations") is None


@pytest.fixture
def shop(servers: Servers, settings: Settings, tmp_path: Path) -> Iterator[Processes]:
    often = {"HOLDFAST_AUDIT_SECONDS": "1", "HOLDFAST_AUDIT_GRACE_SECONDS": "2"}
    with processes(servers, settings, tmp_path, **often) as here:
        here.seed(MUG=5)
        yield here


async def test_the_topics_are_audited_in_the_background_by_their_service(shop: Processes) -> None:
    """While nobody decides, the one carts' worker that has ann's partition misses an outcome; then there is one."""
    [*carts] = shop.start("cart_service", "cart-1", "cart-2")
    for worker in carts:
        worker.wait_ready()

    def violations() -> list[float]:
        return sorted(worker.metric("holdfast_audit_violations", service="cart") for worker in carts)

    async with shoppers(shop.settings) as pool:
        await pool.ask("ann", "add", product="MUG", quantity=1)
        await asyncio.to_thread(until, lambda: violations() == [0, 1], why=lambda: str(violations()))
        logged = [line for worker in carts for line in worker.messages() if line.startswith("audit: request ")]
        assert any("of ann" in line and "has no outcome" in line for line in logged)
        shop.start("inventory_service", "inventory-1")
        await pool.settled()
        await asyncio.to_thread(until, lambda: violations() == [0, 0], why=lambda: str(violations()))
        await pool.check()


BREAK = {
    "inventory": "UPDATE inventory SET received = received + 1 WHERE product_code = 'MUG'",
    "orders": "INSERT INTO order_event VALUES ('o1', 2, 'holdfast.orders.committed', '{}', now())",
}
MEND = {
    "inventory": "UPDATE inventory SET received = received - 1 WHERE product_code = 'MUG'",
    "orders": """
        ALTER TABLE order_event DISABLE TRIGGER append_only;
        DELETE FROM order_event;
        ALTER TABLE order_event ENABLE TRIGGER append_only""",
}


async def test_the_tables_are_audited_in_the_background_by_their_service(shop: Processes) -> None:
    workers = {
        "inventory": shop.start("inventory_service", "inventory-1")[0],
        "orders": shop.start("order_service", "orders-1")[0],
    }
    for worker in workers.values():
        worker.wait_ready()

    async def until_each_finds(wanted: Callable[[float], bool]) -> None:
        def found() -> dict[str, float]:
            return {kind: worker.metric("holdfast_audit_violations", service=kind) for kind, worker in workers.items()}

        await asyncio.to_thread(until, lambda: all(map(wanted, found().values())), why=lambda: str(found()))

    async def execute(statements: dict[str, str]) -> None:
        for kind, statement in statements.items():
            async with await postgres.connect(shop.settings, kind) as connection:
                await connection.execute(statement.encode())

    await execute(BREAK)
    await until_each_finds(lambda violations: violations > 0)
    await execute(MEND)
    await until_each_finds(lambda violations: violations == 0)
