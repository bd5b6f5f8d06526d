"""Faults of processes: killed, terminated, frozen, replaced, duplicated, with a wrong clock."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from infrastructure.crashpoints import KILLED, POINTS
from infrastructure.local.services import KINDS
from load.chaos.scene import Did, Fault, Scene
from load.chaos.stage import pick

FROZEN_SECONDS: Final = 11.5
"""Longer than a consumer session: the partitions move to another worker, and then the frozen one resumes as a zombie.
"""
SHORT_SECONDS: Final = 3.0
SKEW_SECONDS: Final = 300
ON_THE_WAY: Final = ("edge", "cart", "inventory", "orders", "payment", "delivery", "provider")
"""Services that an order needs; the others are hit by `kill-each`, `freeze-each` and `rolling-restart`."""
SAGA: Final = ("cart", "inventory", "orders", "payment")
"""Services in which a zombie or an extra worker could do harm."""


def one(kind: str) -> Callable[[Scene], Did]:
    """Return a target function that chooses one process of a kind at random."""
    return lambda scene: {"victim": pick(scene.stage.many(kind), scene.chance)}


def end(kind: str, number: signal.Signals, about: str) -> Fault:
    """Return a fault that sends a terminating signal to one process of a kind; the supervisor restarts it."""

    async def act(scene: Scene, aim: Mapping[str, Any]) -> Did:
        return await _signal_and_wait(scene, aim["victim"], number)

    return Fault(about, act, one(kind), ("restarts",))


async def _signal_and_wait(scene: Scene, victim: str, number: signal.Signals) -> Did:
    """Signal a process and wait for its successor. The effect has whether it was hit and whether it is missing."""
    old = scene.stage.signal(victim, number)
    back = await scene.stage.until_replaced(victim, old)
    return {"hit": old is not None, **_missing([] if back else [victim])}


def _missing(names: Sequence[str]) -> Did:
    """Return the processes that did not return; the checker excuses those that another fault may have kept."""
    return {"missing": list(names)} if names else {}


def freeze(kind: str, seconds: float, about: str, *, zombies: bool = False) -> Fault:
    """Return a fault that stops one process of a kind for a time and then resumes it."""

    async def act(scene: Scene, aim: Mapping[str, Any]) -> Did:
        return await _freeze_and_resume(scene, aim["victim"], seconds)

    return Fault(about, act, one(kind), zombies=zombies)


async def _freeze_and_resume(scene: Scene, victim: str, seconds: float) -> Did:
    """Stop a process for a time and resume it."""
    async with scene.stage.unsupervised():
        stopped = scene.stage.signal(victim, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            resumed = scene.stage.signal(victim, signal.SIGCONT)
    back = await scene.stage.until_replaced(victim, None)
    return {"hit": stopped is not None and stopped == resumed, **_missing([] if back else [victim])}


def _next_in_turn(scene: Scene) -> Did:
    return {"victim": scene.next_in_turn()}


async def _kill_next(scene: Scene, aim: Mapping[str, Any]) -> Did:
    return await _signal_and_wait(scene, aim["victim"], signal.SIGKILL)


async def _freeze_next(scene: Scene, aim: Mapping[str, Any]) -> Did:
    return await _freeze_and_resume(scene, aim["victim"], SHORT_SECONDS)


async def _rolling_restart(scene: Scene, _: Mapping[str, Any]) -> Did:
    async def one_by_one(names: Sequence[str]) -> list[Did]:
        return [await _signal_and_wait(scene, name, signal.SIGTERM) for name in names]

    kinds = [scene.stage.many(kind.name) for kind in KINDS]
    each = {
        name: effect
        for names, done in zip(kinds, await asyncio.gather(*map(one_by_one, kinds)), strict=True)
        for name, effect in zip(names, done, strict=True)
    }
    missing = [name for name, effect in each.items() if "missing" in effect]
    return {"restarted": [name for name, effect in each.items() if effect["hit"]], **_missing(missing)}


async def _rebalance_storm(scene: Scene, _: Mapping[str, Any]) -> Did:
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


async def _clock_skew(scene: Scene, aim: Mapping[str, Any]) -> Did:
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
    """Start a worker that exits at a failpoint, and a successor that recovers from the state it left."""
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
    **{f"kill-{kind}": end(kind, signal.SIGKILL, f"SIGKILL to one process of {kind}") for kind in ON_THE_WAY},
    **{f"term-{kind}": end(kind, signal.SIGTERM, f"SIGTERM to one process of {kind}") for kind in ("edge", *SAGA)},
    **{
        f"freeze-{kind}": freeze(
            kind, FROZEN_SECONDS, "SIGSTOP until after the consumer session's end, then SIGCONT", zombies=True
        )
        for kind in SAGA
    },
    "kill-each": Fault("SIGKILL to every process and server in turn", _kill_next, _next_in_turn, ("restarts",)),
    "freeze-each": Fault("every process and server in turn frozen for 3 s", _freeze_next, _next_in_turn),
    "crash": Fault(
        "a worker that crashes at a failpoint between two effects, and its successor", _crash, _aim_crash, pause=1.0
    ),
    "rolling-restart": Fault(
        "SIGTERM to all processes, one of each kind at a time", _rolling_restart, needs=("restarts",)
    ),
    "rebalance-storm": Fault(
        "an extra worker of cart, inventory, orders and payment in turn, each killed after 5 s",
        _rebalance_storm,
        pause=0.5,
    ),
    "clock-skew": Fault("an extra worker of one of these, with its clock five minutes off", _clock_skew, _aim_skew),
}
