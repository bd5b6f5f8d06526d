"""`holdfast replay` and `holdfast dlq` on topics of their own: what they send, what they leave alone, what they say."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from contracts.envelope import DeadLetterReason, Envelope
from contracts.topics import Topic
from infrastructure.messaging import dead_letters
from infrastructure.messaging.broker import ensure_topics
from infrastructure.messaging.dead_letters import Record, dead_letter_event
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.settings import Settings
from tests.testkit.command import Holdfast
from tests.testkit.servers import PARTITIONS, Servers, partition
from tests.testkit.tools_topic import EVENTS, EVENTS_SENT, SECRET, send

STATE = Topic("tools.state.v1", keyed_by="product")
NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def holdfast(servers: Servers, prefix: str, tmp_path: Path) -> Iterator[Holdfast]:
    """The command with a broker and a database."""
    with Holdfast(tmp_path, **servers.environment(), HOLDFAST_PREFIX=prefix, HOLDFAST_SECRET=SECRET) as command:
        yield command


@pytest.fixture
async def sent(settings: Settings) -> None:
    """A topic with twelve events of five users."""
    await send(settings, *((each.key, each.encode()) for each in EVENTS_SENT))


async def lying(settings: Settings, topic: Topic) -> list[Any]:
    """Return the records of a topic, in the order of their offsets."""
    found = [record async for record in read_topic(settings, [settings.topic(topic)])]
    return sorted(found, key=lambda record: (record.partition, record.offset))


async def run(holdfast: Holdfast, *words: str, status: int = 0) -> Any:
    """A command with `--json`: what it answers."""
    code, answer, complaint = await asyncio.to_thread(holdfast, *words, "--json")
    assert code == status, complaint
    return json.loads(answer)


@pytest.mark.parametrize("command", ["replay", "republish", "dlq", "dlq list", "dlq show", "dlq redrive", "dlq drop"])
def test_help_has_an_example(holdfast: Holdfast, command: str) -> None:
    status, answer, _ = holdfast(*command.split(), "--help")
    assert status == 0
    assert f"Example: holdfast {command}" in " ".join(answer.split())


# ---- replay ---------------------------------------------------------------------------------------------------------


async def test_a_replay_sends_everything_once_more_unchanged(
    holdfast: Holdfast, settings: Settings, sent: None
) -> None:
    before = await lying(settings, EVENTS)
    told = await run(holdfast, "replay", "tools.events.v1")
    assert told == {"topic": settings.topic(EVENTS), "dry_run": False, "matched": 12, "sent": 12}
    after = await lying(settings, EVENTS)
    assert len(after) == 24
    for number in {record.partition for record in before}:
        old = [(record.key, record.value) for record in before if record.partition == number]
        assert [(record.key, record.value) for record in after if record.partition == number] == old + old


async def test_a_dry_run_lists_and_sends_nothing(holdfast: Holdfast, settings: Settings, sent: None) -> None:
    told = await run(holdfast, "replay", "tools.events.v1", "--key", "user-1", "--dry-run")
    assert [each["requestid"] for each in told["records"]] == ["r1", "r6", "r11"]
    assert (told["matched"], told["sent"]) == (3, 0)
    assert len(await lying(settings, EVENTS)) == 12
    _, answer, _ = await asyncio.to_thread(holdfast, "replay", "tools.events.v1", "--key", "user-1", "--dry-run")
    assert answer.count("\n") == 4
    assert "holdfast.cart.held r1" in answer


@pytest.mark.parametrize(("id_", "number"), [("r7", 7), ("event-7", 7)])
async def test_by_the_id_of_the_event_or_of_its_request(
    holdfast: Holdfast, settings: Settings, sent: None, id_: str, number: int
) -> None:
    assert (await run(holdfast, "replay", "tools.events.v1", "--id", id_))["sent"] == 1
    values = [record.value for record in await lying(settings, EVENTS)]
    assert values.count(EVENTS_SENT[number].encode()) == 2


async def test_between_two_times_and_between_two_offsets(holdfast: Holdfast, settings: Settings, sent: None) -> None:
    records = sorted(await lying(settings, EVENTS), key=lambda record: record.timestamp)

    async def listed(*words: str) -> set[tuple[int, int]]:
        told = await run(holdfast, "replay", "tools.events.v1", "--dry-run", *words)
        return {(each["partition"], each["offset"]) for each in told["records"]}

    def place(those: Sequence[Any]) -> set[tuple[int, int]]:
        return {(record.partition, record.offset) for record in those}

    third, eighth = (datetime.fromtimestamp(records[n].timestamp / 1000, UTC).isoformat() for n in (3, 8))
    assert await listed("--from", third, "--to", eighth) == place(records[3:8])
    assert await listed("--from", eighth) == place(records[8:])
    assert await listed("--from", "1", "--to", "2") == place([each for each in records if each.offset == 1])
    far = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert await listed("--from", far) == set()
    assert await listed("--from", "1000") == set()


async def test_misplaced_records_and_records_without_a_key(holdfast: Holdfast, settings: Settings) -> None:
    await ensure_topics(settings, [EVENTS])
    user = b"user-1"
    astray, keyless = (partition(user) + 1) % PARTITIONS, (partition(user) + 2) % PARTITIONS
    async with producer(settings) as out:
        await out.send_and_wait(
            settings.topic(EVENTS), b"[" * 9000, user, partition=astray, headers=[("traceparent", b"t")]
        )
        await out.send_and_wait(settings.topic(EVENTS), b"x" * 900_000, None, partition=keyless)
    assert (await run(holdfast, "replay", "tools.events.v1"))["sent"] == 2
    records = [
        record for record in await lying(settings, EVENTS) if record.offset or record.partition not in {astray, keyless}
    ]
    assert {(record.partition, record.key, len(record.value)) for record in records} == {
        (partition(user), user, 9000),
        (keyless, None, 900_000),
    }
    assert [record.headers for record in records if record.key] == [(("traceparent", b"t"),)]


@asynccontextmanager
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    out = AIOKafkaProducer(bootstrap_servers=settings.kafka, max_request_size=2_000_000)
    await out.start()
    try:
        yield out
    finally:
        await out.stop()


async def test_compacted_topics_and_dead_letters_have_commands_of_their_own(
    holdfast: Holdfast, settings: Settings
) -> None:
    await ensure_topics(settings, [EVENTS, EVENTS.dead_letter_topic, STATE])
    for topic, command in ((STATE, "holdfast republish"), (EVENTS.dead_letter_topic, "holdfast dlq redrive")):
        status, answer, complaint = await asyncio.to_thread(holdfast, "replay", topic.name)
        assert (status, answer) == (2, "")
        assert command in complaint


@pytest.mark.parametrize(
    "words",
    [
        "replay",
        "replay no.such.topic",
        "replay tools.events.v1 --from yesterday",
        "replay tools.events.v1 --from 2026-11-21T03:24:41",
        "replay tools.events.v1 --from 5 --to 5",
        "replay tools.events.v1 --from 2026-11-21T04:00:00Z --to 2026-11-21T05:00:00+02:00",
        "dlq drop",
        "dlq drop --all --reason failed",
        "dlq show --no-such",
    ],
)
async def test_wrong_use_is_status_2(holdfast: Holdfast, settings: Settings, words: str) -> None:
    await ensure_topics(settings, [EVENTS])
    status, answer, complaint = await asyncio.to_thread(holdfast, *words.split())
    assert (status, answer) == (2, "")
    assert "Traceback" not in complaint


# ---- dead letters ---------------------------------------------------------------------------------------------------

PUT_ASIDE: list[tuple[DeadLetterReason, bytes | None, bytes]] = [
    ("not_json", b"user-1", b"hello"),
    ("not_utf8", b"user-2", b"\xff\x00"),
    ("no_key", None, EVENTS_SENT[3].encode()),
    ("failed", b"user-4", EVENTS_SENT[4].encode()),
    ("failed", b"user-0", EVENTS_SENT[5].encode()),
]


def letter(settings: Settings, number: int) -> Envelope:
    reason, key, value = PUT_ASIDE[number]
    record = Record(settings.topic(EVENTS), number, 40 + number, key, value)
    at = NOW + timedelta(minutes=number)
    return dead_letter_event(record, reason=reason, detail="a test", service="cart", attempts=1, now=at)


@pytest.fixture
async def letters(settings: Settings) -> list[str]:
    """Write five dead letters, one of them twice, and another record; return the dead letters' ids."""
    await ensure_topics(settings, [EVENTS, EVENTS.dead_letter_topic])
    async with producer(settings) as out:
        written = [letter(settings, number) for number in range(len(PUT_ASIDE))]
        for each in (*written, written[0]):
            await out.send_and_wait(settings.topic(EVENTS.dead_letter_topic), each.encode(), each.key)
        await out.send_and_wait(settings.topic(EVENTS.dead_letter_topic), b"rubbish", b"k")
    return [each.id for each in written]


async def counts(holdfast: Holdfast, *words: str) -> dict[str, int]:
    return {row["reason"]: row["count"] for row in await run(holdfast, "dlq", "list", *words)}


async def test_dead_letters_are_counted_by_topic_and_reason(
    holdfast: Holdfast, settings: Settings, letters: list[str]
) -> None:
    rows = {row["reason"]: row for row in await run(holdfast, "dlq", "list")}
    assert {reason: row["count"] for reason, row in rows.items()} == {
        "not_json": 1,
        "not_utf8": 1,
        "no_key": 1,
        "failed": 2,
    }
    assert rows["failed"] == {
        "topic": settings.topic(EVENTS),
        "reason": "failed",
        "count": 2,
        "oldest": "2026-11-21T00:03:00.000Z",
        "newest": "2026-11-21T00:04:00.000Z",
    }
    status, answer, complaint = await asyncio.to_thread(holdfast, "dlq", "list", "--reason", "failed")
    assert (status, answer.count("\n")) == (0, 2)
    assert complaint == "1 records on the dead-letter topics are not dead letters; ignored\n"


async def test_a_dead_letter_can_be_read(holdfast: Holdfast, letters: list[str]) -> None:
    event = EVENTS_SENT[4]
    for words in (["--id", letters[3]], ["--id", "r4"], ["--id", event.id], ["--key", "user-4"]):
        told = await run(holdfast, "dlq", "show", *words)
        assert (told["id"], told["reason"], told["key"]) == (letters[3], "failed", "user-4")
        assert told["value"] == json.loads(event.encode())
    _, answer, _ = await asyncio.to_thread(holdfast, "dlq", "show", "--topic", "tools.events.v1.dlq")
    for sign in ("hello", "/wA=", '"requestid": "r3"', "a test"):
        assert sign in answer


async def test_a_redrive_puts_the_original_back_once(
    holdfast: Holdfast, settings: Settings, letters: list[str]
) -> None:
    assert await run(holdfast, "dlq", "redrive", "--reason", "failed") == {
        "redriven": 2,
        "settled_before": 0,
        "topics": {settings.topic(EVENTS): 2},
    }
    back = {(record.key, record.value, record.partition) for record in await lying(settings, EVENTS)}
    assert back == {(key, value, partition(key)) for _, key, value in PUT_ASIDE[3:] if key}
    assert "failed" not in await counts(holdfast)
    assert (await counts(holdfast, "--settled"))["failed"] == 2
    assert (await run(holdfast, "dlq", "redrive"))["redriven"] == 3
    assert await run(holdfast, "dlq", "redrive") == {"redriven": 0, "settled_before": 5, "topics": {}}
    records = await lying(settings, EVENTS)
    assert sorted((record.key or b"", record.value) for record in records) == sorted(
        (key or b"", value) for _, key, value in PUT_ASIDE
    )
    assert [record.partition for record in records if record.key is None] == [2]
    assert await counts(holdfast) == {}
    assert (await run(holdfast, "dlq", "redrive", "--id", letters[0], "--again"))["redriven"] == 1
    assert len(await lying(settings, EVENTS)) == 6


async def test_a_dropped_dead_letter_is_settled_and_not_sent(
    holdfast: Holdfast, settings: Settings, letters: list[str]
) -> None:
    assert (await run(holdfast, "dlq", "drop", "--key", "user-1"))["dropped"] == 1
    assert "not_json" not in await counts(holdfast)
    assert (await run(holdfast, "dlq", "show", "--id", letters[0]))["settled"] == "dropped"
    assert (await run(holdfast, "dlq", "drop", "--all"))["dropped"] == 4
    assert (await run(holdfast, "dlq", "redrive"))["redriven"] == 0
    assert await lying(settings, EVENTS) == []


async def test_a_settlement_has_the_partition_and_key_of_its_dead_letter(
    holdfast: Holdfast, settings: Settings, letters: list[str]
) -> None:
    await run(holdfast, "dlq", "drop", "--id", letters[3])
    (marker,) = [r for r in await lying(settings, EVENTS.dead_letter_topic) if b"dead-letter-settled" in r.value]
    assert marker.key == b"user-4"
    assert dead_letters.decode(marker.value) == dead_letters.SettledMarker(letters[3], "dropped")
    assert Envelope.decode(marker.key, marker.value).type == dead_letters.SETTLED_TYPE


@pytest.mark.parametrize("command", ["show", "redrive", "drop"])
async def test_an_unknown_dead_letter_is_a_sentence_and_status_1(
    holdfast: Holdfast, letters: list[str], command: str
) -> None:
    status, answer, complaint = await asyncio.to_thread(holdfast, "dlq", command, "--id", "no-such")
    assert (status, answer) == (1, "")
    assert "no dead letter matches" in complaint
