"""Nemesis: every fault by name. A fault chooses its target, which is recorded, then acts and returns its effect."""

import asyncio
import signal
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from aiokafka.errors import KafkaError
from psycopg import Error as PostgresError
from redis.exceptions import RedisError

from infrastructure.local.errors import StackError as LocalError
from load.chaos.clients.slow_reader import send_without_reading
from load.chaos.faults import payments, processes, records
from load.chaos.faults.context import Effect, Fault, FaultContext
from load.chaos.faults.processes import SHORT_SECONDS, freeze_fault, signal_fault
from load.chaos.history import NEMESIS
from load.http_client import ShopUnavailableError

EXPECTED_ERRORS: Final = (
    OSError,
    TimeoutError,
    KafkaError,
    PostgresError,
    RedisError,
    aiohttp.ClientError,
    LocalError,
    ShopUnavailableError,
)
"""Errors that a fault may meet because another fault is in effect."""
MARKER_KEY: Final = "chaos:mark"
"""Redis key that shows whether a flush took effect."""


async def inject(name: str, context: FaultContext) -> bool:
    """Inject one fault and record it. False (recorded as `info`) if it had no effect or another fault was in the way.

    The effect is a dict of numbers, names and booleans; the fault took effect only if none of them is false or empty.
    """
    fault = FAULTS[name]
    aim = fault.choose_target(context)
    context.recorder.record(NEMESIS, "invoke", name, value=aim)
    before = context.shop.restarts()
    try:
        effect = await fault.act(context, aim)
    except EXPECTED_ERRORS as error:
        context.recorder.record(NEMESIS, "info", name, value={**aim, "error": f"{type(error).__name__}: {error}"})
        return False
    took_effect = all(effect.values())
    restarts = context.shop.restarts() - before
    context.recorder.record(
        NEMESIS, "ok" if took_effect else "info", name, value={**aim, **effect, "restarts": restarts}
    )
    return took_effect


# ---- servers --------------------------------------------------------------------------------------------------------


async def _cut_postgres(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    cut = 0
    async with context.shop.postgres() as connection:
        for _attempt in range(5):
            cursor = await connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            cut += sum(row[0] for row in await cursor.fetchall())
            await asyncio.sleep(0.3)
    return {"cut": cut}


async def _flush(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    flushed = 0
    async with context.shop.redis() as redis:
        for _attempt in range(10):
            await redis.set(MARKER_KEY, "here", px=10_000)
            await redis.flushall()
            flushed += await redis.get(MARKER_KEY) is None
            await asyncio.sleep(0.1)
    return {"flushed": flushed}


async def _pause(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    async with context.shop.redis() as redis:
        await redis.client_pause(int(SHORT_SECONDS * 1000))
        silent = False
        try:
            async with asyncio.timeout(SHORT_SECONDS / 2):
                await redis.ping()
        except TimeoutError:
            silent = True
    await asyncio.sleep(SHORT_SECONDS / 2)
    return {"silent": silent}


async def _expire(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
    async with context.shop.postgres() as connection:
        done = await connection.execute(
            # Ordered by user, the lock order of all transactions.
            "WITH locked AS (SELECT user_id FROM inventory.holder WHERE user_id = ANY(%s) AND expires_at IS NOT NULL"
            " ORDER BY user_id FOR NO KEY UPDATE)"
            " UPDATE inventory.holder AS h SET expires_at = now() FROM locked WHERE h.user_id = locked.user_id",
            [aim["users"]],
        )
    return {"made due": done.rowcount}


# ---- connections ----------------------------------------------------------------------------------------------------


async def _cut_clients(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
    cut = sum(client.abort() for client in context.clients if client.user in aim["cut"])
    hasty_clients = context.sample_clients(0.1)
    for client in hasty_clients:
        await asyncio.wait_for(client.send_and_abort(context.products), 10)
    return {"were open": cut, "hasty": len(hasty_clients)}


async def _slow_readers(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    slow_readers = context.sample_clients(0.5)
    await send_without_reading([(client.shop.url, client.shopper.guest.token) for client in slow_readers])
    return {"deaf": len(slow_readers)}


# ---- records --------------------------------------------------------------------------------------------------------


async def _duplicate(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    return {"repeated": await records.duplicate_requests(context.shop.settings, SHORT_SECONDS)}


async def _replay(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    return {"replayed": await records.replay_records(context.shop.settings, context.since)}


async def _poison(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
    settings = context.shop.settings
    context.planted += await records.write_poison(settings, aim["in the way of"], context.chance)
    return {"astray": await records.write_to_wrong_partition(settings, aim["in the way of"], context.products)}


FAULTS: Final[Mapping[str, Fault]] = {
    **processes.FAULTS,
    "kill-redis": signal_fault("redis", signal.SIGKILL, "SIGKILL to Redis"),
    "flush-redis": Fault("FLUSHALL ten times within a second", _flush),
    "pause-redis": Fault("Redis does not answer for 3 s", _pause),
    "kill-postgres": signal_fault("postgres", signal.SIGKILL, "SIGKILL to PostgreSQL and all its backends"),
    "cut-postgres": Fault("pg_terminate_backend for all backends, five times within 1.5 s", _cut_postgres),
    "freeze-postgres": freeze_fault("postgres", SHORT_SECONDS, "PostgreSQL frozen for 3 s"),
    "kill-kafka": signal_fault("kafka", signal.SIGKILL, "SIGKILL to the broker"),
    "freeze-kafka": freeze_fault("kafka", SHORT_SECONDS, "the broker frozen for 3 s"),
    "duplicate": Fault("each request delivered twice, for 3 s", _duplicate, required_events=("duplicates",)),
    "replay": Fault("all topics replayed to themselves under load", _replay, required_events=("duplicates",)),
    "poison": Fault(
        "invalid records in front of valid ones",
        _poison,
        lambda context: {"in the way of": [client.user for client in context.sample_clients(0.1)]},
        ("dead letters",),
    ),
    "cut-clients": Fault(
        "connections aborted with open requests; some shoppers never reconnect",
        _cut_clients,
        lambda context: {"cut": [client.user for client in context.sample_clients(0.4)]},
        ("resumed",),
        mean_pause=1.0,
    ),
    "slow-readers": Fault("sockets that send many requests and read nothing", _slow_readers),
    "expire": Fault(
        "carts expired while they are being changed",
        _expire,
        lambda context: {"users": [client.user for client in context.sample_clients(0.3)]},
        ("expired",),
        mean_pause=1.0,
    ),
    **payments.FAULTS,
}
