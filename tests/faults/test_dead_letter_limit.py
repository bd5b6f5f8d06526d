"""A worker at its dead-letter limit on a real Kafka: unready and alive, it holds its batch and loses nothing."""

import asyncio
import time
from pathlib import Path

from aiokafka import AIOKafkaProducer

from contracts.cart import REQUESTS
from infrastructure.messaging.broker import ensure_topics
from infrastructure.messaging.dead_letters import DeadLetter, decode
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.service import EX_TEMPFAIL
from infrastructure.process.settings import Settings
from tests.testkit.processes import Replica, clean_up, processes, until
from tests.testkit.servers import Servers

LIMIT = 25
RECORDS = 40


async def test_a_worker_at_its_dead_letter_limit_is_unready_and_alive_and_loses_nothing(
    servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    with processes(servers, settings, tmp_path, HOLDFAST_DEAD_LETTER_LIMIT_PER_MINUTE=str(LIMIT)) as here:
        await ensure_topics(settings, [REQUESTS, REQUESTS.dead_letter_topic])
        worker = here.add("tests.testkit.stuck_worker", "one")  # to which two seconds without progress are a stall
        worker.again()
        worker.kept = False
        await _send_bad_records(settings)
        await asyncio.to_thread(_wait_until_held, worker)
        assert len(await _dead_letters(settings)) == LIMIT
        assert worker.metric("holdfast_dead_letter_paused", topic=settings.topic(REQUESTS)) == 1

        end = time.monotonic() + 5
        await asyncio.to_thread(until, lambda: worker.health("/livez") != "ok" or time.monotonic() > end)
        assert worker.health("/livez") == "ok", "a restart mends nothing"
        assert len(await _dead_letters(settings)) == LIMIT

        other = here.add("tests.testkit.stuck_worker", "two", HOLDFAST_DEAD_LETTER_LIMIT_PER_MINUTE="0")
        other.again()  # a rebalance: it gets half of the partitions, or all if the first one had to end
        assert worker.process is not None
        if worker.process.poll() is None:
            assert await asyncio.to_thread(worker.stop) == EX_TEMPFAIL, worker.log_tail()
        worker.again(HOLDFAST_DEAD_LETTER_LIMIT_PER_MINUTE="0")
        end = time.monotonic() + 30
        while len(await _dead_letters(settings)) < RECORDS and time.monotonic() < end:
            await asyncio.sleep(0.2)
        assert len(await _dead_letters(settings)) == RECORDS
        for replica in (worker, other):
            assert await asyncio.to_thread(replica.stop) == 0
    await clean_up(settings)


async def _send_bad_records(settings: Settings) -> None:
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka) as producer:
        for number in range(RECORDS):
            await producer.send(settings.topic(REQUESTS), b"hello", f"user-{number}".encode())


def _wait_until_held(worker: Replica) -> None:
    until(
        lambda: "stopped at the dead-letter limit" in worker.health(), 20, lambda: worker.health() + worker.log_tail()
    )


async def _dead_letters(settings: Settings) -> set[str]:
    """Return the ids of the dead letters: a record that is read twice has two with the same id."""
    records = [record async for record in read_topic(settings, [settings.topic(REQUESTS.dead_letter_topic)])]
    return {letter.event.id for record in records if isinstance(letter := decode(record.value), DeadLetter)}
