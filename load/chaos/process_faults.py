"""Faults of processes: killed, ended, frozen, replaced, doubled, misled by their clock."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from infrastructure.crashpoints import KILLED, POINTS
from infrastructure.local.services import KINDS
from load.chaos.scene import Did, Fault, Scene
from load.chaos.stage import pick

FROZEN_SECONDS: Final = 11.5
"""Longer than a consumer's session lasts: its partitions go to another, and then it goes on."""
SHORT_SECONDS: Final = 3.0
SKEW_SECONDS: Final = 300
ON_THE_WAY: Final = ("edge", "cart", "inventory", "orders", "payment", "delivery", "provider")
"""What an order cannot do without; the others have their turn with `kill-each`, `freeze-each` and `rolling-restart`."""
SAGA: Final = ("cart", "inventory", "orders", "payment")
"""Of these a zombie, or a worker too many, could do harm."""


def one(kind: str) -> Callable[[Scene], Did]:
    """The aim at one of a kind, by chance."""
    return lambda scene: {"victim": pick(scene.stage.many(kind), scene.chance)}


def end(kind: str, number: signal.Signals, about: str) -> Fault:
    """One of a kind gets a signal that ends it; the supervisor starts it again."""

    async def act(scene: Scene, aim: Mapping[str, Any]) -> Did:
        return await _ended(scene, aim["victim"], number)

    return Fault(about, act, one(kind), ("restarts",))


async def _ended(scene: Scene, victim: str, number: signal.Signals) -> Did:
    """Signal a process, and wait for its successor: whether it was there to be hit, and who is missing since."""
    old = scene.stage.signal(victim, number)
    back = await scene.stage.until_replaced(victim, old)
    return {"hit": old is not None, **_missing([] if back else [victim])}


def _missing(names: Sequence[str]) -> Did:
    """For the checker, which judges whether anything else could have kept them; the fault has happened all the same."""
    return {"missing": list(names)} if names else {}


def freeze(kind: str, seconds: float, about: str, *, zombies: bool = False) -> Fault:
    """One of a kind is stopped for a time, and goes on."""

    async def act(scene: Scene, aim: Mapping[str, Any]) -> Did:
        return await _still(scene, aim["victim"], seconds)

    return Fault(about, act, one(kind), zombies=zombies)


async def _still(scene: Scene, victim: str, seconds: float) -> Did:
    """Stop a process for a time, and let it go on."""
    async with scene.stage.unsupervised():
        stopped = scene.stage.signal(victim, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            gone_on = scene.stage.signal(victim, signal.SIGCONT)
    back = await scene.stage.until_replaced(victim, None)
    return {"hit": stopped is not None and stopped == gone_on, **_missing([] if back else [victim])}


def _next_in_turn(scene: Scene) -> Did:
    return {"victim": scene.next_in_turn()}


async def _kill_next(scene: Scene, aim: Mapping[str, Any]) -> Did:
    return await _ended(scene, aim["victim"], signal.SIGKILL)


async def _freeze_next(scene: Scene, aim: Mapping[str, Any]) -> Did:
    return await _still(scene, aim["victim"], SHORT_SECONDS)


async def _rolling(scene: Scene, _: Mapping[str, Any]) -> Did:
    async def one_by_one(names: Sequence[str]) -> list[Did]:
        return [await _ended(scene, name, signal.SIGTERM) for name in names]

    kinds = [scene.stage.many(kind.name) for kind in KINDS]
    each = {
        name: did
        for names, done in zip(kinds, await asyncio.gather(*map(one_by_one, kinds)), strict=True)
        for name, did in zip(names, done, strict=True)
    }
    missing = [name for name, did in each.items() if "missing" in did]
    return {"restarted": [name for name, did in each.items() if did["hit"]], **_missing(missing)}


async def _storm(scene: Scene, _: Mapping[str, Any]) -> Did:
    joined = {}
    for kind in SAGA:
        extra = scene.stage.more(kind, number=8)
        extra.start()
        try:
            joined[f"{kind} joined"] = await extra.ready()
            await asyncio.sleep(2)
        finally:
            await extra.end(signal.SIGKILL)
    return joined


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
        "kind": scene.chance.choice(SAGA),
        "seconds": scene.chance.choice((-SKEW_SECONDS, SKEW_SECONDS)),
    }


async def _crash(scene: Scene, aim: Mapping[str, Any]) -> Did:
    """A worker that dies at one point, and its successor, which finds what it left."""
    kind = aim["point"].partition(".")[0]
    first = scene.stage.more(kind, number=6, HOLDFAST_CRASHPOINT=f"{aim['point']}:{aim['count']}")
    first.start()
    await first.ready()
    status = await first.ended(6)
    if status != KILLED:
        await first.end(signal.SIGTERM)
        return {"crashed": False}
    second = scene.stage.more(kind, number=6)
    second.start()
    followed = await second.ready()
    await second.end(signal.SIGTERM)
    return {"crashed": True, "followed": followed}


def _aim_crash(scene: Scene) -> Did:
    points = [name for name in POINTS if name.partition(".")[0] in (*SAGA, "delivery")]
    return {"point": pick(points, scene.chance), "count": scene.chance.randint(1, 5)}


FAULTS: Final[Mapping[str, Fault]] = {
    **{f"kill-{kind}": end(kind, signal.SIGKILL, f"kill -9 of {kind}, one worker of it") for kind in ON_THE_WAY},
    **{f"term-{kind}": end(kind, signal.SIGTERM, f"SIGTERM to {kind}, one worker of it") for kind in ("edge", *SAGA)},
    **{
        f"freeze-{kind}": freeze(kind, FROZEN_SECONDS, "SIGSTOP past the session's end, then SIGCONT", zombies=True)
        for kind in SAGA
    },
    "kill-each": Fault("kill -9 of every process and server in turn", _kill_next, _next_in_turn, ("restarts",)),
    "freeze-each": Fault("every process and server in turn stopped for 3 s", _freeze_next, _next_in_turn),
    "crash": Fault(
        "a worker that ends at a named point between two effects, and its successor", _crash, _aim_crash, pause=1.0
    ),
    "rolling-restart": Fault("SIGTERM to all processes, of each kind to one at a time", _rolling, needs=("restarts",)),
    "rebalance-storm": Fault(
        "one worker more of cart, inventory, orders and payment, each killed after 5 s", _storm, pause=0.5
    ),
    "clock-skew": Fault("one worker more of one of these, whose clock is five minutes off", _skew, _aim_skew),
}
