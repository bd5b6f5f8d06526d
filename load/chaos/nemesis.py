"""Every fault by its name. A fault first takes aim, which is written down, then acts and says what it did."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.errors import KafkaError
from psycopg import Error as PostgresError
from redis.exceptions import RedisError

from infrastructure.crashpoints import POINTS
from infrastructure.local.errors import Fault as Answerless
from load.chaos import records
from load.chaos.deaf import ask_without_reading
from load.chaos.history import NEMESIS, Recorder
from load.chaos.shoppers import Witness
from load.chaos.stage import Stage, pick
from load.chaos.truth import Bad

FROZEN_SECONDS: Final = 11.5
"""Longer than a consumer's session lasts: its partitions go to another, and then it goes on."""
SHORT_SECONDS: Final = 3.0
SKEW_SECONDS: Final = 300

Did = dict[str, Any]


@dataclass(slots=True)
class Scene:
    """What a fault may touch."""

    stage: Stage
    recorder: Recorder
    witnesses: Sequence[Witness]
    products: Sequence[str]
    chance: random.Random
    since: records.Offsets
    bad: list[Bad] = field(default_factory=list)

    def some(self, share: float) -> list[Witness]:
        """Some of the shoppers, at least one."""
        number = max(1, round(len(self.witnesses) * share))
        return self.chance.sample(list(self.witnesses), number)


def _nothing(_: Scene) -> Did:
    return {}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault. `needs`: what must have happened in a scenario with it for that to count."""

    about: str
    act: Callable[[Scene, Mapping[str, Any]], Awaitable[Did]]
    aim: Callable[[Scene], Did] = _nothing
    needs: tuple[str, ...] = ()
    zombies: bool = False
    """A process goes on after it was given up for dead."""
    pause: float = 2.0
    """Seconds until it comes again, on average."""


async def strike(name: str, scene: Scene) -> bool:
    """Commit one fault and write it down; false, and `info`, when it met the ruins of another."""
    fault = FAULTS[name]
    aim = fault.aim(scene)
    scene.recorder.note(NEMESIS, "invoke", name, value=aim)
    before = scene.stage.restarts()
    try:
        did = await fault.act(scene, aim)
    except (OSError, TimeoutError, KafkaError, PostgresError, RedisError, Answerless) as error:
        scene.recorder.note(NEMESIS, "info", name, value={**aim, "error": f"{type(error).__name__}: {error}"})
        return False
    restarts = scene.stage.restarts() - before
    scene.recorder.note(NEMESIS, "ok", name, value={**aim, **did, "restarts": restarts})
    return True


# ---- processes ------------------------------------------------------------------------------------------------------


def _one(kind: str) -> Callable[[Scene], Did]:
    return lambda scene: {"victim": pick(scene.stage.many(kind), scene.chance)}


def _end(kind: str, number: signal.Signals, about: str) -> Fault:
    async def act(scene: Scene, aim: Mapping[str, Any]) -> Did:
        old = scene.stage.signal(aim["victim"], number)
        await scene.stage.until_replaced(aim["victim"], old)
        return {}

    return Fault(about, act, _one(kind), ("restarts",))


def _freeze(kind: str, seconds: float, about: str, *, zombies: bool = False) -> Fault:
    async def act(scene: Scene, aim: Mapping[str, Any]) -> Did:
        async with scene.stage.unsupervised():
            scene.stage.signal(aim["victim"], signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                scene.stage.signal(aim["victim"], signal.SIGCONT)
        await scene.stage.until_replaced(aim["victim"], None)
        return {}

    return Fault(about, act, _one(kind), zombies=zombies)


async def _rolling(scene: Scene, _: Mapping[str, Any]) -> Did:
    names = [*scene.stage.many("edge"), *scene.stage.many("cart"), *scene.stage.many("inventory")]
    for name in names:
        old = scene.stage.signal(name, signal.SIGTERM)
        await scene.stage.until_replaced(name, old)
    return {"restarted": names}


async def _storm(scene: Scene, _: Mapping[str, Any]) -> Did:
    for kind in ("cart", "inventory"):
        extra = scene.stage.more(kind, number=8)
        extra.start()
        try:
            await asyncio.sleep(5)
        finally:
            await extra.end(signal.SIGKILL)
    return {}


async def _skew(scene: Scene, aim: Mapping[str, Any]) -> Did:
    extra = scene.stage.more(aim["kind"], number=7, HOLDFAST_CLOCK_SKEW_SECONDS=str(aim["seconds"]))
    extra.start()
    try:
        ready = await extra.ready()
        await asyncio.sleep(4)
    finally:
        await extra.end(signal.SIGTERM)
    return {"ready": ready}


def _aim_skew(scene: Scene) -> Did:
    return {
        "kind": scene.chance.choice(("cart", "inventory")),
        "seconds": scene.chance.choice((-SKEW_SECONDS, SKEW_SECONDS)),
    }


async def _crash(scene: Scene, aim: Mapping[str, Any]) -> Did:
    """A worker that dies at one point, and its successor, which finds what it left."""
    kind = aim["point"].partition(".")[0]
    first = scene.stage.more(kind, number=6, HOLDFAST_CRASHPOINT=f"{aim['point']}:{aim['count']}")
    first.start()
    crashed = await first.ended(8)
    if not crashed:
        await first.end(signal.SIGTERM)
        return {"crashed": False}
    second = scene.stage.more(kind, number=6)
    second.start()
    await second.ready(10)
    await second.end(signal.SIGTERM)
    return {"crashed": True}


def _aim_crash(scene: Scene) -> Did:
    points = [name for name in POINTS if name.startswith(("cart.", "inventory."))]
    return {"point": pick(points, scene.chance), "count": scene.chance.randint(1, 5)}


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
    async with scene.stage.redis() as redis:
        for _again in range(10):
            await redis.flushall()
            await asyncio.sleep(0.1)
    return {}


async def _pause(scene: Scene, _: Mapping[str, Any]) -> Did:
    async with scene.stage.redis() as redis:
        await redis.client_pause(int(SHORT_SECONDS * 1000))
    await asyncio.sleep(SHORT_SECONDS)
    return {}


async def _expire(scene: Scene, aim: Mapping[str, Any]) -> Did:
    async with scene.stage.postgres() as connection:
        done = await connection.execute(
            # In the order of users, as everybody locks them.
            "WITH locked AS (SELECT user_id FROM inventory.holder WHERE user_id = ANY(%s) AND expires_at IS NOT NULL"
            " ORDER BY user_id FOR NO KEY UPDATE)"
            " UPDATE inventory.holder AS h SET expires_at = now() FROM locked WHERE h.user_id = locked.user_id",
            [aim["users"]],
        )
    return {"made due": done.rowcount}


# ---- lines ----------------------------------------------------------------------------------------------------------


async def _cut_clients(scene: Scene, aim: Mapping[str, Any]) -> Did:
    cut = [witness for witness in scene.witnesses if witness.user in aim["cut"]]
    for witness in cut:
        witness.shopper.cut()
    for witness in scene.some(0.1):
        await asyncio.wait_for(witness.hasty(scene.products), 10)
    return {}


async def _slow_readers(scene: Scene, _: Mapping[str, Any]) -> Did:
    deaf = scene.some(0.5)
    await ask_without_reading([(witness.shop.url, witness.shopper.guest.token) for witness in deaf])
    return {"deaf": len(deaf)}


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
    "kill-edge": _end("edge", signal.SIGKILL, "kill -9 of the edge, under open sockets"),
    "kill-cart": _end("cart", signal.SIGKILL, "kill -9 of one of two cart workers"),
    "kill-inventory": _end("inventory", signal.SIGKILL, "kill -9 of one of two inventory workers"),
    "term-edge": _end("edge", signal.SIGTERM, "SIGTERM to the edge"),
    "term-cart": _end("cart", signal.SIGTERM, "SIGTERM to one of two cart workers"),
    "term-inventory": _end("inventory", signal.SIGTERM, "SIGTERM to one of two inventory workers"),
    "freeze-cart": _freeze("cart", FROZEN_SECONDS, "SIGSTOP past the session's end, then SIGCONT", zombies=True),
    "freeze-inventory": _freeze(
        "inventory", FROZEN_SECONDS, "the same, perhaps in the middle of a transaction", zombies=True
    ),
    "crash": Fault(
        "a worker that ends at a named point between two effects, and its successor", _crash, _aim_crash, pause=1.0
    ),
    "rolling-restart": Fault("SIGTERM to each process in turn", _rolling, needs=("restarts",)),
    "rebalance-storm": Fault("a third worker started and killed after 5 s, again and again", _storm, pause=0.5),
    "clock-skew": Fault("a third worker whose clock is five minutes off", _skew, _aim_skew),
    "kill-redis": _end("redis", signal.SIGKILL, "kill -9 of Redis"),
    "flush-redis": Fault("FLUSHALL, ten times in a second", _flush),
    "pause-redis": Fault("Redis answers nobody for 3 s", _pause),
    "kill-postgres": _end("postgres", signal.SIGKILL, "kill -9 of PostgreSQL and all its backends"),
    "cut-postgres": Fault("pg_terminate_backend for everybody, five times in 1.5 s", _cut_postgres),
    "freeze-postgres": _freeze("postgres", SHORT_SECONDS, "PostgreSQL stopped for 3 s"),
    "kill-kafka": _end("kafka", signal.SIGKILL, "kill -9 of the broker"),
    "freeze-kafka": _freeze("kafka", SHORT_SECONDS, "the broker stopped for 3 s"),
    "duplicate": Fault("each request delivered twice, for 3 s", _duplicate, needs=("duplicates",)),
    "replay": Fault("all topics fed back to themselves, while running", _replay, needs=("duplicates",)),
    "poison": Fault(
        "records that nobody can act on, in the way of good ones",
        _poison,
        lambda scene: {"in the way of": [witness.user for witness in scene.some(0.1)]},
        ("dead letters",),
    ),
    "cut-clients": Fault(
        "lines aborted under open requests; some shoppers never come back for them",
        _cut_clients,
        lambda scene: {"cut": [witness.user for witness in scene.some(0.4)]},
        ("resumed",),
        pause=1.0,
    ),
    "slow-readers": Fault("sockets that ask for much and read nothing", _slow_readers),
    "expire": Fault(
        "carts made due while they are being changed",
        _expire,
        lambda scene: {"users": [witness.user for witness in scene.some(0.3)]},
        ("expired",),
        pause=1.0,
    ),
}
