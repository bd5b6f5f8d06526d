"""Lag of the shop's consumer groups: records that a group has not committed."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from infrastructure.local.commands import topic_reader
from infrastructure.local.errors import StackError
from infrastructure.process.settings import Settings

TIMEOUT_SECONDS: Final = 2.0
"""Seconds that one reading of the lag may take."""

Offsets = Mapping[TopicPartition, int]
Lag = dict[str, dict[str, int]]
"""Group → topic → records."""


def records_behind(committed: Offsets, first: Offsets, end: Offsets) -> dict[str, int]:
    """Return the number of records that a group has not committed, by topic.

    In a partition without a committed offset every record counts.
    """
    waiting: dict[str, int] = {}
    for partition in sorted(end):
        since = committed.get(partition, first.get(partition, 0))
        waiting[partition.topic] = waiting.get(partition.topic, 0) + max(0, end[partition] - since)
    return waiting


class LagReader:
    """Reader of the lag of one shop's consumer groups; readings share the connections. Call `close` at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._exit_stack = AsyncExitStack()
        self._clients: tuple[AIOKafkaAdminClient, AIOKafkaConsumer] | None = None

    async def read(self) -> Lag | None:
        """Return each group's lag on the topics it has committed offsets of; `None` if the broker does not answer."""
        try:
            with topic_reader.convert_broker_errors(self._settings):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    return await self._read()
        except StackError:
            await self.close()
            return None

    async def close(self) -> None:
        """Close the connections; the next reading opens new ones."""
        self._clients = None
        await self._exit_stack.aclose()

    async def _read(self) -> Lag:
        if self._clients is None:
            admin = await self._exit_stack.enter_async_context(topic_reader.open_admin_client(self._settings))
            reader = await self._exit_stack.enter_async_context(topic_reader.open_consumer(self._settings))
            self._clients = (admin, reader)
        admin, reader = self._clients
        names = sorted(name for name, _ in await admin.list_consumer_groups() if name.startswith(self._settings.prefix))
        committed: dict[str, Offsets] = {}
        for name in names:
            known = await admin.list_consumer_group_offsets(name)
            committed[name] = {partition: found.offset for partition, found in known.items()}
        topics = sorted({partition.topic for partitions in committed.values() for partition in partitions})
        described = await admin.describe_topics(topics) if topics else []
        every = [TopicPartition(each["topic"], part["partition"]) for each in described for part in each["partitions"]]
        first, end = await reader.beginning_offsets(every), await reader.end_offsets(every)
        return {name: records_behind(known, first, _of_known_topics(known, end)) for name, known in committed.items()}


def _of_known_topics(known: Offsets, end: Offsets) -> Offsets:
    """Return the end offsets of all partitions of the topics that occur in `known`."""
    topics = {partition.topic for partition in known}
    return {partition: offset for partition, offset in end.items() if partition.topic in topics}
