"""Two workers of carts and two of inventory under load: who works on which partitions, and for whom."""

import asyncio
import time
from collections.abc import Callable

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from tests.testkit.processes import PATIENCE, Processes, Replica
from tests.testkit.servers import PARTITIONS, partition
from tests.testkit.topic_client import Shoppers

MODULES = {"cart": "cart_service", "inventory": "inventory_service"}
SESSION = 6.0
HEARTBEAT = 0.25
KILLED = 8.0
"""Seconds that a dead worker's shoppers may wait: its session, and a rebalance."""


async def keep_shopping_for(seconds: float, pool: Shoppers, rate: float = 20) -> float:
    """Shop for a while; returns the moment at which it began."""
    began = time.monotonic()
    await pool.keep_shopping(rate, lambda: time.monotonic() > began + seconds)
    return began


async def assigned_partitions(shop: Processes, kind: str) -> tuple[dict[str, set[int]], str]:
    """The numbers of the partitions that each replica in a group has, and the group's state."""
    admin = AIOKafkaAdminClient(bootstrap_servers=shop.settings.kafka)
    await admin.start()
    try:
        [response] = await admin.describe_consumer_groups([shop.settings.prefix + kind])
        [(_, _, state, _, _, members, *_)] = response.groups
        prefix, found = shop.settings.prefix, {}  # a static member's id begins with its name
        for replica in shop.replicas:
            for member, *_, assignment in members:
                if member.startswith(f"{prefix}{replica.name}-"):
                    places = ConsumerProtocolMemberAssignment.decode(assignment).partitions() if assignment else ()
                    found[replica.name] = {place.partition for place in places}
        return found, state
    finally:
        await admin.close()


async def users_of(shop: Processes, kind: str, worker: Replica) -> Callable[[str], bool]:
    """Return a test for the users of a worker, once every partition is assigned."""
    async with asyncio.timeout(PATIENCE):
        while True:
            assigned, state = await assigned_partitions(shop, kind)
            if state == "Stable" and set().union(*assigned.values()) == set(range(PARTITIONS)):
                return lambda user: partition(user.encode()) in assigned[worker.name]
            await asyncio.sleep(0.2)
