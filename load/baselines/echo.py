"""Baseline: WebSocket in, some hops through Kafka, WebSocket out; as fast as one process can be.

The minimum cost of the shop's path: one event loop (uvloop), no validation, no state, no consumer groups, one partition
per topic, linger 0, nothing awaited but the next record. Durability is that of the shop: `acks=all`. The key is the
number of the socket. The value is the frame and comes back with `type` `held` in front, so that the driver needs no
special case. With `--commits K`, the first K hops each store their records in Postgres before forwarding them: one
prepared statement and one commit per fetch.

    python -m load.baselines.echo --kafka 127.0.0.1:9092 --prefix echo. --hops 4
"""

import argparse
import asyncio
import gc
import json
import os
import signal
from collections.abc import Awaitable, Callable, Sequence

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from psycopg import AsyncConnection, sql

from load.raw_websocket import RawServerConnection

HOPS = 4
INSERT_BATCH = "INSERT INTO {} (key, value) SELECT * FROM unnest(%s::text[], %s::text[])"


class Echo:
    """Sockets and the hops between them."""

    def __init__(self, producer: AIOKafkaProducer, topics: list[str]) -> None:
        self.producer = producer
        self.topics = topics
        self.connections: dict[bytes, RawServerConnection] = {}
        self.keys: dict[RawServerConnection, bytes] = {}

    def enqueue(self, connection: RawServerConnection, text: bytes) -> None:
        """Queue a received frame for the first topic."""
        key = self.keys.get(connection)
        if key is None:
            key = self.keys[connection] = b"%d" % len(self.keys)
            self.connections[key] = connection
        self.queue.put_nowait((key, text))

    async def send_to_first_topic(self) -> None:
        """Send received frames to the first topic, in order."""
        self.queue: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        while True:
            key, text = await self.queue.get()
            await self.producer.send(self.topics[0], text, key, partition=0)

    async def hop(self, number: int, consumer: AIOKafkaConsumer, store: "StoreBatch | None" = None) -> None:
        """Forward records from one topic to the next, and from the last one to their sockets."""
        last = number == len(self.topics) - 1
        while True:
            for records in (await consumer.getmany(timeout_ms=60_000)).values():
                if store is not None:
                    await store(records)
                for record in records:
                    if last:
                        self.reply(record.key, record.value)
                    else:
                        await self.producer.send(self.topics[number + 1], record.value, record.key, partition=0)

    def reply(self, key: bytes, text: bytes) -> None:
        """Send the frame back to its socket."""
        connection = self.connections.get(key)
        if connection is not None:
            # `"type":"held"` in front: of two equal names JSON parsers take the last, so the request's own is renamed.
            try:
                connection.send(b'{"type":"held",' + text[1:].replace(b'"type"', b'"asked"', 1))
            except ConnectionError:
                del self.connections[key]


StoreBatch = Callable[[Sequence[ConsumerRecord]], Awaitable[None]]


async def batch_writer(url: str, table: str) -> StoreBatch:
    """Return a function that stores records in a table, over a connection of its own, with one commit per call."""
    connection = await AsyncConnection.connect(url, autocommit=True, prepare_threshold=0)
    name = sql.Identifier(table)
    await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
    await connection.execute(sql.SQL("CREATE TABLE {} (key text NOT NULL, value text NOT NULL)").format(name))
    statement = sql.SQL(INSERT_BATCH).format(name)

    async def store(records: Sequence[ConsumerRecord]) -> None:
        await connection.execute(statement, ([r.key.decode() for r in records], [r.value.decode() for r in records]))

    return store


async def run(kafka: str, prefix: str, hops: int, commits: int, postgres: str) -> None:
    """Serve until SIGINT or SIGTERM; print the address as one line of JSON."""
    topics = [f"{prefix}{number}" for number in range(1, hops + 1)]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1) for topic in topics])  # existing topics are left unchanged
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", linger_ms=0)
    await producer.start()
    echo = Echo(producer, topics)
    consumers = [AIOKafkaConsumer(bootstrap_servers=kafka, fetch_max_wait_ms=1500) for _ in topics]
    for topic, consumer in zip(topics, consumers, strict=True):
        await consumer.start()
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        await consumer.seek_to_end(partition)
        await consumer.position(partition)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    work = [asyncio.create_task(echo.send_to_first_topic())]
    stores = [await batch_writer(postgres, topic) for topic in topics[:commits]]
    for hop, consumer in enumerate(consumers):
        work.append(asyncio.create_task(echo.hop(hop, consumer, stores[hop] if hop < commits else None)))
    server = await loop.create_server(lambda: RawServerConnection(echo.enqueue), "127.0.0.1", 0)
    gc.collect()
    gc.freeze()
    print(json.dumps({"url": f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"}), flush=True)
    ended = asyncio.create_task(stop.wait())
    await asyncio.wait({ended, *work}, return_when=asyncio.FIRST_COMPLETED)
    server.close()
    for task in work:
        if task.done():
            task.result()
        task.cancel()
    for consumer in consumers:
        await consumer.stop()
    await producer.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--hops", type=int, default=HOPS)
    parser.add_argument("--commits", type=int, default=0, help="commits in the database of HOLDFAST_POSTGRES_URL")
    given = parser.parse_args()
    uvloop.run(run(given.kafka, given.prefix, given.hops, given.commits, os.environ.get("HOLDFAST_POSTGRES_URL", "")))
