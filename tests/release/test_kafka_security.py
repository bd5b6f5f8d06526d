"""TLS and passwords of Kafka: every client of ours against a broker that requires them."""

import asyncio
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from contracts.topics import Topic
from infrastructure.local.errors import ServerUnavailable
from infrastructure.local.servers import external
from infrastructure.local.state import Root
from infrastructure.messaging import kafka_security
from infrastructure.messaging.broker import BrokerUnavailableError, ensure_topics
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.settings import Settings
from tests.testkit.processes import processes
from tests.testkit.secure_kafka import PASSWORD, Certificates, SecureKafka
from tests.testkit.servers import Servers

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    folder = tmp_path_factory.mktemp("secure")
    root = Root(folder / "root")
    root.create()
    kafka, started = SecureKafka(root, Certificates(folder)), []  # type: ignore[var-annotated]  # processes
    try:
        kafka.bring_up(started)
        yield kafka
    finally:
        for child in started:
            child.kill()
            child.wait(30)


async def exchange(settings: Settings) -> list[bytes | None]:
    """Create a topic, write a record and read it again, with an admin client, a producer and a consumer."""
    topic = Topic(f"exchange-{secrets.token_hex(3)}.v1", keyed_by="user", partitions=1, retention=timedelta(days=1))
    await ensure_topics(settings, (topic,), wait=20)
    async with AIOKafkaProducer(**kafka_security.client_options(settings)) as producer:
        await producer.send_and_wait(settings.topic(topic), b"hello")
    return [record.value async for record in read_topic(settings, [settings.topic(topic)])]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_clients_connect_with_a_password(broker: SecureKafka, mechanism: str) -> None:
    assert await exchange(Settings.model_validate(broker.sasl(mechanism))) == [b"hello"]


async def test_clients_connect_with_a_certificate(broker: SecureKafka) -> None:
    assert await exchange(Settings.model_validate(broker.mutual_tls())) == [b"hello"]


@pytest.mark.parametrize(
    "change",
    [
        {"kafka_password": "another"},
        {"kafka_username": "another"},
        {"kafka_ca_file": "OTHER"},
        {"kafka_ca_file": ""},
        {"kafka_security_protocol": "PLAINTEXT", "kafka_ca_file": "", "kafka_password": None},
        {"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_ca_file": ""},
    ],
    ids=str,
)
async def test_nobody_else_connects_and_no_other_broker_is_trusted(broker: SecureKafka, change: dict[str, Any]) -> None:
    given = broker.sasl() | change
    if given["kafka_ca_file"] == "OTHER":
        given["kafka_ca_file"] = broker.certificates.other_ca
    with pytest.raises((BrokerUnavailableError, KafkaError)):
        await ensure_topics(Settings.model_validate(given), (), wait=2)


async def test_a_broker_under_another_name_is_not_trusted(broker: SecureKafka) -> None:
    given = {**broker.sasl(), "kafka": f"127.0.0.2:{broker.sasl_port}"}
    with pytest.raises(BrokerUnavailableError):
        await ensure_topics(Settings.model_validate(given), (), wait=2)


async def test_a_client_without_a_certificate_is_refused_where_one_is_required(broker: SecureKafka) -> None:
    given = {
        name: value for name, value in broker.mutual_tls().items() if "certificate" not in name and "key" not in name
    }
    with pytest.raises(BrokerUnavailableError):
        await ensure_topics(Settings.model_validate(given), (), wait=2)


def environment(broker: SecureKafka, folder: Path) -> dict[str, str]:
    """The variables of a client with a password, which is in a file."""
    file = folder / "password"
    file.write_text(PASSWORD + "\n")
    given = {f"HOLDFAST_{name.upper()}": value for name, value in broker.sasl().items()}
    del given["HOLDFAST_KAFKA_PASSWORD"]
    return {**given, "HOLDFAST_KAFKA_PASSWORD_FILE": str(file)}


def test_a_production_shop_works_and_each_process_has_its_own_secrets_alone(
    broker: SecureKafka, servers: Servers, tmp_path: Path
) -> None:
    settings = servers.settings()
    more = environment(broker, tmp_path)
    edge_only = {
        "HOLDFAST_SECRET": secrets.token_hex(16),
        "HOLDFAST_WEBHOOK_SECRET": secrets.token_hex(16),
        "HOLDFAST_LIMITS": "on",
        "HOLDFAST_HTTP_PORT": "0",
        "HOLDFAST_HEALTH_PORT": "0",
    }
    with processes(servers, settings, tmp_path, **more, HOLDFAST_PROFILE="production") as shop:
        shop.seed(P=3)
        started = shop.start("cart_service", "cart") + shop.start("inventory_service", "inventory")
        edge = shop.add("rest_api", "edge", **edge_only)
        edge.start()
        url = edge.wait_for_url()
        for replica in started:
            replica.wait_ready()
        with httpx.Client(base_url=url, trust_env=False, timeout=40) as client:
            token = client.post("/v1/guests").json()["token"]
            client.headers["Authorization"] = f"Bearer {token}"
            for _ in range(100):
                added = client.post(
                    "/v1/cart/items", json={"product": "P", "quantity": 1}, headers={"Prefer": "wait=10"}
                )
                if added.status_code != 503:  # not ready yet
                    break
        assert added.json()["type"] == "held"
        assert edge.stop() == 0


def holdfast(folder: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return subprocess.run(
        [sys.executable, "-m", "infrastructure.local", *arguments],
        env={**inherited, "PYTHONPATH": str(CHECKOUT), "HOLDFAST_ROOT": str(folder / "root"), **more},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def test_kafkas_own_tools_get_the_password_in_a_file_of_this_user(broker: SecureKafka, tmp_path: Path) -> None:
    name = f"tools-{secrets.token_hex(3)}"
    topic = Topic(name, keyed_by="user", partitions=1, retention=timedelta(days=1))
    asyncio.run(ensure_topics(Settings.model_validate(broker.sasl()), (topic,), wait=20))
    more = environment(broker, tmp_path)
    for arguments in (("kafka", "topics", "--list"), ("kafka", "get-offsets", "--topic", name), ("topics", "--json")):
        done = holdfast(tmp_path, *arguments, **more)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout
    file = tmp_path / "root" / "kafka-client.properties"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    sent = subprocess.run(
        [sys.executable, "-m", "infrastructure.local", "kafka", "console-producer", "--topic", name],
        input="a line\n",
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "HOLDFAST_ROOT": str(tmp_path / "root"), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert sent.returncode == 0, sent.stderr
    read = holdfast(
        tmp_path, "kafka", "console-consumer", "--topic", name, "--from-beginning", "--max-messages", "1", **more
    )
    assert read.stdout == "a line\n", read.stderr


def test_up_checks_an_external_broker_over_tls(broker: SecureKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in broker.sasl().items():
        monkeypatch.setenv(f"HOLDFAST_{name.upper()}", value)
    external.require_usable("kafka", broker.sasl()["kafka"])
    monkeypatch.setenv("HOLDFAST_KAFKA_CA_FILE", broker.certificates.other_ca)
    with pytest.raises(ServerUnavailable):
        external.require_usable("kafka", broker.sasl()["kafka"])
