"""Nemesis: every fault by name. A fault chooses its target, which is recorded, then acts and returns its effect."""

import asyncio
import signal
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from aiokafka.errors import KafkaError
from psycopg import Error as PostgresError
from redis.exceptions import RedisError

from infrastructure.local.errors import Fault as LocalError
from load.chaos import order_faults, process_faults, records
from load.chaos.deaf import ask_without_reading
from load.chaos.history import NEMESIS
from load.chaos.process_faults import SHORT_SECONDS, end, freeze
from load.chaos.scene import Did, Fault, Scene
from load.shop import ShopAwayError

RUINS: Final = (
    OSError,
    TimeoutError,
    KafkaError,
    PostgresError,
    RedisError,
    aiohttp.ClientError,
    LocalError,
    ShopAwayError,
)
"""Errors that a fault may meet because another fault is in effect."""
MARK: Final = "chaos:mark"
"""Redis key that shows whether a flush took effect."""


async def strike(name: str, scene: Scene) -> bool:
    """Inject one fault and record it. False (recorded as `info`) if it had no effect or another fault was in the way.

    The effect is a dict of numbers, names and booleans; the fault took effect only if none of them is false or empty.
    """
    fault = FAULTS[name]
    aim = fault.aim(scene)
    scene.recorder.note(NEMESIS, "invoke", name, value=aim)
    before = scene.stage.restarts()
    try:
        effect = await fault.act(scene, aim)
    except RUINS as error:
        scene.recorder.note(NEMESIS, "info", name, value={**aim, "error": f"{type(error).__name__}: {error}"})
        return False
    took_effect = all(effect.values())
    restarts = scene.stage.restarts() - before
    scene.recorder.note(NEMESIS, "ok" if took_effect else "info", name, value={**aim, **effect, "restarts": restarts})
    return took_effect


# ---- servers --------------------------------------------------------------------------------------------------------


async def _cut_postgres(scene: Scene, _: Mapping[str, Any]) -> Did:
    cut = 0
    async with scene.stage.postgres() as connection:
        for _again in range(5):
            cursor = await connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            cut += sum(row[0] for row in await cursor.fetchall())
            await asyncio.sleep(0.3)
    return {"cut": cut}


async def _flush(scene: Scene, _: Mapping[str, Any]) -> Did:
    gone = 0
    async with scene.stage.redis() as redis:
        for _again in range(10):
            await redis.set(MARK, "here", px=10_000)
            await redis.flushall()
            gone += await redis.get(MARK) is None
            await asyncio.sleep(0.1)
    return {"flushed": gone}


async def _pause(scene: Scene, _: Mapping[str, Any]) -> Did:
    async with scene.stage.redis() as redis:
        await redis.client_pause(int(SHORT_SECONDS * 1000))
        silent = False
        try:
            async with asyncio.timeout(SHORT_SECONDS / 2):
                await redis.ping()
        except TimeoutError:
            silent = True
    await asyncio.sleep(SHORT_SECONDS / 2)
    return {"silent": silent}


async def _expire(scene: Scene, aim: Mapping[str, Any]) -> Did:
    async with scene.stage.postgres() as connection:
        done = await connection.execute(
            # Ordered by user, the lock order of all transactions.
            "WITH locked AS (SELECT user_id FROM inventory.holder WHERE user_id = ANY(%s) AND expires_at IS NOT NULL"
            " ORDER BY user_id FOR NO KEY UPDATE)"
            " UPDATE inventory.holder AS h SET expires_at = now() FROM locked WHERE h.user_id = locked.user_id",
            [aim["users"]],
        )
    return {"made due": done.rowcount}


# ---- connections ----------------------------------------------------------------------------------------------------


async def _cut_clients(scene: Scene, aim: Mapping[str, Any]) -> Did:
    cut = sum(witness.cut() for witness in scene.witnesses if witness.user in aim["cut"])
    hasty_clients = scene.some(0.1)
    for witness in hasty_clients:
        await asyncio.wait_for(witness.hasty(scene.products), 10)
    return {"were open": cut, "hasty": len(hasty_clients)}


async def _slow_readers(scene: Scene, _: Mapping[str, Any]) -> Did:
    slow_readers = scene.some(0.5)
    await ask_without_reading([(witness.shop.url, witness.shopper.guest.token) for witness in slow_readers])
    return {"deaf": len(slow_readers)}


# ---- records --------------------------------------------------------------------------------------------------------


async def _duplicate(scene: Scene, _: Mapping[str, Any]) -> Did:
    return {"repeated": await records.duplicate(scene.stage.settings, SHORT_SECONDS)}


async def _replay(scene: Scene, _: Mapping[str, Any]) -> Did:
    return {"replayed": await records.replay(scene.stage.settings, scene.since)}


async def _poison(scene: Scene, aim: Mapping[str, Any]) -> Did:
    settings = scene.stage.settings
    scene.bad += await records.put_poison(settings, aim["in the way of"], scene.chance)
    return {"astray": await records.put_astray(settings, aim["in the way of"], scene.products)}


FAULTS: Final[Mapping[str, Fault]] = {
    **process_faults.FAULTS,
    "kill-redis": end("redis", signal.SIGKILL, "SIGKILL to Redis"),
    "flush-redis": Fault("FLUSHALL ten times within a second", _flush),
    "pause-redis": Fault("Redis does not answer for 3 s", _pause),
    "kill-postgres": end("postgres", signal.SIGKILL, "SIGKILL to PostgreSQL and all its backends"),
    "cut-postgres": Fault("pg_terminate_backend for all backends, five times within 1.5 s", _cut_postgres),
    "freeze-postgres": freeze("postgres", SHORT_SECONDS, "PostgreSQL frozen for 3 s"),
    "kill-kafka": end("kafka", signal.SIGKILL, "SIGKILL to the broker"),
    "freeze-kafka": freeze("kafka", SHORT_SECONDS, "the broker frozen for 3 s"),
    "duplicate": Fault("each request delivered twice, for 3 s", _duplicate, needs=("duplicates",)),
    "replay": Fault("all topics replayed to themselves under load", _replay, needs=("duplicates",)),
    "poison": Fault(
        "invalid records in front of valid ones",
        _poison,
        lambda scene: {"in the way of": [witness.user for witness in scene.some(0.1)]},
        ("dead letters",),
    ),
    "cut-clients": Fault(
        "connections aborted with open requests; some shoppers never reconnect",
        _cut_clients,
        lambda scene: {"cut": [witness.user for witness in scene.some(0.4)]},
        ("resumed",),
        pause=1.0,
    ),
    "slow-readers": Fault("sockets that send many requests and read nothing", _slow_readers),
    "expire": Fault(
        "carts expired while they are being changed",
        _expire,
        lambda scene: {"users": [witness.user for witness in scene.some(0.3)]},
        ("expired",),
        pause=1.0,
    ),
    **order_faults.FAULTS,
}
