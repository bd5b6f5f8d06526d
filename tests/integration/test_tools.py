"""The commands that look into a shop, run as their users run them: from another directory, by their exit status."""

import asyncio
import base64
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from infrastructure.local.state import Root
from infrastructure.observability import metrics
from infrastructure.process.health import HealthServer
from infrastructure.process.settings import Settings
from infrastructure.security.tokens import verify
from tests.testkit.command import Holdfast
from tests.testkit.servers import PARTITIONS, Servers, partition
from tests.testkit.tools_topic import EVENTS, EVENTS_SENT, SECRET, event, send


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Holdfast]:
    """The command where no shop runs."""
    with Holdfast(tmp_path) as command:
        yield command


@pytest.fixture
def holdfast(servers: Servers, prefix: str, tmp_path: Path) -> Iterator[Holdfast]:
    """The command with a broker and a database."""
    with Holdfast(tmp_path, **servers.environment(), HOLDFAST_PREFIX=prefix, HOLDFAST_SECRET=SECRET) as command:
        yield command


def no_shop(alone: Holdfast) -> str:
    """Return the message of a command where no shop runs."""
    return (
        f"holdfast: no shop runs here: HOLDFAST_ROOT is {alone.folder / 'no-shop'}, and it does not exist;"
        " start one with `holdfast up`, or correct or unset HOLDFAST_ROOT\n"
    )


@pytest.fixture
async def sent(settings: Settings) -> list[str]:
    """Return the lines that `tail` should print for a topic of twelve events."""
    await send(settings, *((each.key, each.encode()) for each in EVENTS_SENT))
    return [f"{each.subject}\t{each.encode().decode()}" for each in EVENTS_SENT]


@pytest.mark.parametrize(
    "command",
    [
        "topics",
        "tail",
        "top",
        "seed",
        "migrate",
        "audit",
        "story",
        "guests",
        "token",
        "prove",
        "prove oversell",
        "load",
        "shoppers",
        "bench",
    ],
)
def test_help_has_an_example(alone: Holdfast, command: str) -> None:
    status, answer, _ = alone(*command.split(), "--help")
    assert status == 0
    assert f"Example: holdfast {command}" in " ".join(answer.split()) or (
        command == "token" and "holdfast token --role admin" in answer
    )


@pytest.mark.parametrize(
    "command",
    [
        "tail",
        "story",
        "story --user ann",
        "seed no-such-file.csv",
        "guests",
        "guests 0",
        "guests x",
        "token",
        "token --role king",
        "topics more",
        "top more",
        "token --role admin --minutes 0",
        "prove",
        "prove oversell --buyers 3 --stock 3",
        "prove oversell --buyers x",
        "load --rate 0",
        "load --shoppers many",
        "shoppers no-such-file.csv",
        "shoppers --pace 0",
        "bench nonsense",
        "bench --rounds 0",
    ],
)
def test_wrong_use_is_status_2(alone: Holdfast, command: str) -> None:
    alone.environment |= {
        "HOLDFAST_HTTP_URL": "http://127.0.0.1:1",
        "HOLDFAST_POSTGRES_URL": "postgresql://127.0.0.1:1",
    }
    status, answer, complaint = alone(*command.split())
    assert (status, answer if command != "prove" else "") == (2, "")
    assert "Traceback" not in complaint


@pytest.mark.parametrize(
    "command",
    [
        "topics",
        "tail t",
        "top",
        "top --json",
        "migrate",
        "audit",
        "story an-order",
        "status",
        "logs",
        "env",
        "dlq list",
        "replay cart.requests.v1",
        "republish",
        "seed /dev/null",
        "kafka topics --list",
        "guests 1",
        "token --role admin",
        "prove oversell",
        "load",
        "shoppers",
    ],
)
def test_without_a_shop_each_says_so_and_where_it_looked(alone: Holdfast, command: str) -> None:
    status, answer, complaint = alone(*command.split())
    assert (status, answer) == (1, "")
    assert complaint == no_shop(alone)


@pytest.mark.parametrize(
    "command", ["topics", "tail t", "story o", "guests 1", "prove oversell --control", "load", "shoppers"]
)
def test_a_server_that_does_not_answer_is_one_sentence(alone: Holdfast, command: str) -> None:
    alone.environment |= {
        "HOLDFAST_KAFKA": "127.0.0.1:1",
        "HOLDFAST_HTTP_URL": "http://127.0.0.1:1",
        "HOLDFAST_POSTGRES_URL": "postgresql://127.0.0.1:1/holdfast",
    }
    status, answer, complaint = alone(*command.split())
    assert (status, answer) == (1, "")
    assert complaint.startswith("holdfast: ")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("how", ["--help", "--help=variables", "-?", "--version", "-V"])
def test_psql_shows_its_help_without_a_shop(alone: Holdfast, how: str) -> None:
    child = alone.start("psql", how)
    answer, complaint = child.communicate(timeout=60)
    assert (child.returncode, complaint) == (0, b"")
    assert b"psql" in answer.lower() or how == "--help=variables"
    assert answer


def test_psql_without_a_shop_says_so(alone: Holdfast) -> None:
    status, answer, complaint = alone("psql", "-c", "SELECT 1")
    assert (status, answer, complaint) == (1, "", no_shop(alone))


def test_logs_follow_until_they_are_interrupted(alone: Holdfast) -> None:
    log = alone.folder / "no-shop" / "logs" / "cart-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("old\n")
    child = alone.start("logs", "cart-1", "--follow")
    assert child.stdout is not None
    assert child.stdout.readline() == b"old\n"
    with log.open("a") as writer:
        writer.write("new\nhalf a li")
    assert child.stdout.readline() == b"new\n"
    child.send_signal(signal.SIGINT)
    assert (*child.communicate(timeout=30), child.returncode) == (b"", b"", 0)


def test_topics_lists_only_this_shops_topics(holdfast: Holdfast, sent: list[str], prefix: str) -> None:
    status, answer, _ = holdfast("topics", "--json")
    (topic,) = json.loads(answer)
    assert status == 0
    assert (topic["topic"], topic["partitions"], topic["cleanup"]) == (f"{prefix}tools.events.v1", PARTITIONS, "delete")
    assert (topic["records"], topic["retention_ms"]) == (12, 7 * 24 * 3600 * 1000)
    assert sum(each["end"] - each["first"] for each in topic["offsets"]) == 12
    assert f"{prefix}tools.events.v1" in holdfast("topics")[1]


def test_tail_prints_records_in_the_order_of_the_console_consumer(holdfast: Holdfast, sent: list[str]) -> None:
    assert holdfast("tail", "tools.events.v1") == (0, "".join(f"{line}\n" for line in sent), "")


def test_tail_by_full_name_and_the_last_few(holdfast: Holdfast, sent: list[str], prefix: str) -> None:
    assert holdfast("tail", f"{prefix}tools.events.v1", "--last", "3")[1].splitlines() == sent[-3:]
    assert holdfast("tail", "tools.events.v1", "--last", "0")[1] == ""


@pytest.mark.parametrize("type_", ["held", "cart.held", "holdfast.cart.held"])
def test_tail_by_type(holdfast: Holdfast, sent: list[str], type_: str) -> None:
    assert holdfast("tail", "tools.events.v1", "--type", type_)[1].splitlines() == sent[1::2]


def test_tail_by_key_and_the_last_of_those(holdfast: Holdfast, sent: list[str]) -> None:
    assert holdfast("tail", "tools.events.v1", "--key", "user-1")[1].splitlines() == sent[1::5]
    assert holdfast("tail", "tools.events.v1", "--key", "user-1", "--last", "1")[1].splitlines() == [sent[11]]


def test_tail_for_machines_has_the_place(holdfast: Holdfast, sent: list[str], prefix: str) -> None:
    lines = [json.loads(line) for line in holdfast("tail", "tools.events.v1", "--json")[1].splitlines()]
    assert [line["value"]["id"] for line in lines] == [each.id for each in EVENTS_SENT]
    assert {line["topic"] for line in lines} == {f"{prefix}tools.events.v1"}
    assert all({"partition", "offset", "timestamp", "key"} <= line.keys() for line in lines)


async def test_tail_prints_records_that_are_not_events(holdfast: Holdfast, settings: Settings) -> None:
    async def run(how: str) -> str:
        status, answer, _ = await asyncio.to_thread(holdfast, "tail", "tools.events.v1", how)
        assert status == 0
        return answer

    await send(settings, (None, b"\xff"), (b"k", b"words"), (b"k", None))
    told = [json.loads(line) for line in (await run("--json")).splitlines()]
    assert [line.get("value", line.get("value_base64")) for line in told] == [
        base64.b64encode(b"\xff").decode(),
        "words",
        None,
    ]
    assert (await run("--pretty")).count("not an event") == 3


def test_tail_of_an_unknown_topic_names_those_there_are(holdfast: Holdfast, sent: list[str], prefix: str) -> None:
    status, answer, complaint = holdfast("tail", "no.such.topic")
    assert (status, answer) == (2, "")
    assert "'no.such.topic'" in complaint
    assert f"{prefix}tools.events.v1" in complaint


async def test_tail_follows_until_it_is_interrupted(holdfast: Holdfast, settings: Settings, sent: list[str]) -> None:
    child = holdfast.start("tail", "tools.events.v1", "--last", "1", "--follow")
    assert child.stdout is not None
    assert child.stdout.readline().decode().rstrip("\n") == sent[-1]
    new = event(99, "user-1")
    await send(settings, (new.key, new.encode()))
    assert child.stdout.readline().decode() == f"{new.subject}\t{new.encode().decode()}\n"
    child.send_signal(signal.SIGINT)
    assert (*child.communicate(timeout=30), child.returncode) == (b"", b"", 0)


async def test_tail_leaves_no_consumer_group_behind(
    holdfast: Holdfast, settings: Settings, sent: list[str], servers: Servers
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    try:
        before = set(await admin.list_consumer_groups())
        assert (await asyncio.to_thread(holdfast, "tail", "tools.events.v1"))[0] == 0
        assert set(await admin.list_consumer_groups()) <= before
    finally:
        await admin.close()


@pytest.fixture
async def watched(servers: Servers, prefix: str, tmp_path: Path) -> AsyncIterator[tuple[Holdfast, ExitStack]]:
    """The command in a shop whose one service is this process, busy; and its lock, which can be let go."""
    health = HealthServer("127.0.0.1", 0, live=lambda: None, ready=lambda: None)
    await health.start()
    root = Root(tmp_path / "root")
    root.create()
    edge = {"state": "ready", "pid": os.getpid(), "restarts": 2}
    root.save(
        {
            "http": "http://127.0.0.1:8080",
            "kafka": servers.kafka,
            "postgres": servers.postgres_url,
            "redis": servers.redis_url,
            "limits": "on",
            "state": "ready",
            "supervisor": os.getpid(),
            "services": {
                "edge": {**edge, "metrics": f"http://127.0.0.1:{health.port}/metrics"},
                "kafka": {"state": "ready", "pid": 0, "restarts": 0, "metrics": None, "external": True},
            },
        }
    )

    async def work() -> None:
        while True:
            metrics.OUTCOMES.labels("held", "").inc()
            await asyncio.sleep(0.01)

    busy = asyncio.create_task(work())
    try:
        with ExitStack() as held:
            assert held.enter_context(root.acquire_lock())
            with Holdfast(tmp_path, HOLDFAST_ROOT=str(root.path), HOLDFAST_PREFIX=prefix) as command:
                yield command, held
    finally:
        busy.cancel()
        await health.stop()


async def acknowledge(settings: Settings, group: str, key: bytes) -> int:
    """Be a group that has acknowledged all records of one key's partition; returns how many."""
    reader = AIOKafkaConsumer(bootstrap_servers=settings.kafka, group_id=group, enable_auto_commit=False)
    await reader.start()
    try:
        place = TopicPartition(settings.topic(EVENTS), partition(key))
        reader.assign([place])
        end = int((await reader.end_offsets([place]))[place])
        await reader.commit({place: end})
        return end
    finally:
        await reader.stop()


async def test_top_shows_processes_lag_and_rates(
    watched: tuple[Holdfast, ExitStack], settings: Settings, sent: list[str], prefix: str
) -> None:
    holdfast, _ = watched
    known = await acknowledge(settings, f"{prefix}readers", b"user-1")
    status, answer, complaint = await asyncio.to_thread(holdfast, "top", "--json")
    told = json.loads(answer)
    assert (status, complaint) == (0, "")
    assert 0 < known < 12
    assert told["lag"] == {f"{prefix}readers": {settings.topic(EVENTS): 12 - known}}
    assert told["seconds"] >= 1
    edge, kafka = told["services"]["edge"], told["services"]["kafka"]
    assert (edge["state"], edge["pid"], edge["restarts"]) == ("ready", os.getpid(), 2)
    assert edge["rss_bytes"] > 1 << 20
    assert edge["cpu_percent"] > 0
    assert told["rates"]["outcomes"].keys() == {"all", "held"}
    assert 0 < told["rates"]["outcomes"]["all"] <= 100
    assert (kafka["pid"], kafka["cpu_percent"], kafka["records"]) == (0, None, None)


async def test_top_without_a_terminal_is_one_table(
    watched: tuple[Holdfast, ExitStack], settings: Settings, sent: list[str], prefix: str
) -> None:
    holdfast, _ = watched
    await acknowledge(settings, f"{prefix}readers", b"user-1")
    status, answer, complaint = await asyncio.to_thread(holdfast, "top")
    assert (status, complaint) == (0, "")
    assert "\x1b" not in answer
    assert answer.count("edge") == 1
    assert f"{prefix}readers" in answer


async def test_top_without_kafka_shows_the_rest(watched: tuple[Holdfast, ExitStack]) -> None:
    holdfast, _ = watched
    file = holdfast.folder / "root" / "stack.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kafka": "127.0.0.1:1"}))
    status, answer, complaint = await asyncio.to_thread(holdfast, "top", "--json")
    told = json.loads(answer)
    assert (status, complaint, told["lag"]) == (0, "", None)
    assert told["rates"]["outcomes"]["held"] > 0


@pytest.mark.parametrize("end", ["interrupted", "the shop has stopped"])
async def test_top_goes_on_in_a_terminal(watched: tuple[Holdfast, ExitStack], end: str) -> None:
    holdfast, held = watched
    child, screen = _in_a_terminal(holdfast, "top")
    shown = b""
    try:
        async with asyncio.timeout(60):
            while shown.count(b"http requests") < 3:  # the first look has no rates yet
                shown += await asyncio.to_thread(os.read, screen, 1 << 16)
        if end == "interrupted":
            child.send_signal(signal.SIGINT)
        else:
            held.close()
        while part := await asyncio.to_thread(_read, screen):
            shown += part
        _, complaint = await asyncio.to_thread(child.communicate, timeout=30)
    finally:
        os.close(screen)
        child.kill()
    assert shown.count(b"held") >= 3
    assert b"\x1b[?1049l" in shown.rpartition(b"edge")[2], "the terminal is what it was before"
    if end == "interrupted":
        assert (child.returncode, complaint) == (0, b"")
    else:
        assert child.returncode == 1
        assert complaint.startswith(b"holdfast: the supervisor of ")
        assert b" is gone" in complaint


def _in_a_terminal(holdfast: Holdfast, command: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command on a terminal of 50 by 100; returns it, and where what it shows is read."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "infrastructure.local", command],
        cwd=holdfast.folder,
        env=holdfast.environment | {"TERM": "xterm"},
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    return child, screen


def _read(screen: int) -> bytes:
    """Return the next output of the terminal; nothing when the last program on it has ended."""
    try:
        return os.read(screen, 1 << 16)
    except OSError:
        return b""


def test_a_token_is_signed_with_the_shops_secret(holdfast: Holdfast) -> None:
    status, answer, _ = holdfast("token", "--role", "support", "--user", "somebody", "--minutes", "5", "--json")
    told = json.loads(answer)
    identity = verify(SECRET, told["token"], now=datetime.now(UTC))
    assert (status, identity.user_id, set(identity.roles)) == (0, "somebody", {"support"})
    assert 0 < (identity.expires_at - datetime.now(UTC)).total_seconds() <= 300


def test_no_token_outside_the_local_profile(holdfast: Holdfast) -> None:
    holdfast.environment |= {"HOLDFAST_PROFILE": "production", "HOLDFAST_WEBHOOK_SECRET": "another-" * 8}
    status, answer, complaint = holdfast("token", "--role", "admin")
    assert (status, answer) == (1, "")
    assert "local profile" in complaint


def test_migrate_seed_and_audit_from_anywhere(holdfast: Holdfast) -> None:
    assert json.loads(holdfast("migrate", "--json")[1])["ok"] is True
    (holdfast.folder / "a shop.csv").write_text(
        "product_code,name,price,currency,quantity\nTEAPOT,A teapot,12.50,GBP,7\n", encoding="utf-8"
    )
    assert holdfast("seed", "a shop.csv")[0] == 0
    status, answer, _ = holdfast("audit", "--json")
    report = json.loads(answer)
    assert (status, report["ok"], report["violations"]) == (0, True, [])
    assert report["figures"]["received"] == 7
    assert json.loads(holdfast("audit", "--json")[1])["digest"] == report["digest"]


def test_a_file_that_is_no_catalogue_is_refused_with_the_services_own_status(holdfast: Holdfast) -> None:
    (holdfast.folder / "bad.csv").write_text("product_code,name,price,currency,quantity\nX,Y,z,GBP,1\n", "utf-8")
    child = holdfast.start("seed", "bad.csv", "--json")
    answer, complaint = child.communicate(timeout=60)
    assert (child.returncode, json.loads(answer)["ok"]) == (1, False)
    assert b"price" in complaint


@pytest.mark.parametrize(("buyers", "stock"), [(2, 1), (17, 16), (200, 25), (40, 39), (33, 1)])
def test_without_the_stock_check_it_always_oversells(holdfast: Holdfast, buyers: int, stock: int) -> None:
    command = ("prove", "oversell", "--control", "--json", "--buyers", str(buyers), "--stock", str(stock))
    status, answer, _ = holdfast(*command)
    told = json.loads(answer)
    assert (status, told["oversold"]) == (0, True)
    assert told["rushes"][0]["held"] > stock
    assert "barrier" in told["method"]
