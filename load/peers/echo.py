"""A bare echo: WebSocket in, four hops through Kafka, WebSocket out; as fast as one process can be.

As little as the shop's path can cost: one event loop (uvloop), no validation, no state, no consumer groups, one
partition a topic, linger 0, nothing awaited but the next record. Only durability is the shop's: `acks=all`. The key is
the number of the socket; the value is the frame, and comes back with `type` `held` in front, so that one driver does
for both.

    python -m load.peers.echo --kafka 127.0.0.1:9092 --prefix echo.
"""

import argparse
import asyncio
import gc
import json
import signal

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from load.wire import Peer

HOPS = 4


class Echo:
    """The sockets, and the hops between them."""

    def __init__(self, producer: AIOKafkaProducer, topics: list[str]) -> None:
        self.producer = producer
        self.topics = topics
        self.peers: dict[bytes, Peer] = {}
        self.keys: dict[Peer, bytes] = {}

    def take(self, peer: Peer, text: bytes) -> None:
        """A frame came: into the first topic with it."""
        key = self.keys.get(peer)
        if key is None:
            key = self.keys[peer] = b"%d" % len(self.keys)
            self.peers[key] = peer
        self.queue.put_nowait((key, text))

    async def first(self) -> None:
        """Send what came in, in order."""
        self.queue: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        while True:
            key, text = await self.queue.get()
            await self.producer.send(self.topics[0], text, key, partition=0)

    async def hop(self, number: int, consumer: AIOKafkaConsumer) -> None:
        """Pass records on from one topic to the next, and from the last one to their sockets."""
        last = number == HOPS - 1
        while True:
            for records in (await consumer.getmany(timeout_ms=60_000)).values():
                for record in records:
                    if last:
                        self.answer(record.key, record.value)
                    else:
                        await self.producer.send(self.topics[number + 1], record.value, record.key, partition=0)

    def answer(self, key: bytes, text: bytes) -> None:
        """The frame is back."""
        peer = self.peers.get(key)
        if peer is not None:
            # `"type":"held"` in front: of two equal names JSON readers take the last, so the asked one is renamed.
            try:
                peer.send(b'{"type":"held",' + text[1:].replace(b'"type"', b'"asked"', 1))
            except ConnectionError:
                del self.peers[key]


async def run(kafka: str, prefix: str) -> None:
    """Serve until told to stop; the address goes to standard output as one line of JSON."""
    topics = [f"{prefix}{number}" for number in range(1, HOPS + 1)]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1) for topic in topics])  # those that exist stay
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
    work = [asyncio.create_task(echo.first())]
    work += [asyncio.create_task(echo.hop(number, consumer)) for number, consumer in enumerate(consumers)]
    server = await loop.create_server(lambda: Peer(echo.take), "127.0.0.1", 0)
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
    arguments = parser.parse_args()
    uvloop.run(run(arguments.kafka, arguments.prefix))
