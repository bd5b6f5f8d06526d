"""Faults of paying: a provider that is away, slow or broken, webhooks by the dozen, and orders told all over again."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from load.chaos import records
from load.chaos.scene import Did, Fault, Scene

AWAY_SECONDS: Final = 4.0
SLOW_SECONDS: Final = 2.5
BROKEN_ANSWERS: Final = 30
WEBHOOKS: Final = 40
YESTERDAY: Final = 86_400.0


def _provider(how: Mapping[str, Any], seconds: float, about: str) -> Fault:
    async def act(scene: Scene, _: Mapping[str, Any]) -> Did:
        provider = scene.stage.provider
        await provider.control(**how)
        try:
            (refused, waited), _ended = await asyncio.gather(provider.refuses(), asyncio.sleep(seconds))
        finally:
            await provider.control()
        return {"felt": waited >= how["slow"] if "slow" in how else refused}

    return Fault(about, act)


async def _webhooks(scene: Scene, _: Mapping[str, Any]) -> Did:
    """What was decided is told again, in any order; one in five times too late, one in five by a stranger."""
    provider, url = scene.stage.provider, scene.stage.webhook_url
    whose = {order: witness.user for witness in scene.witnesses for order in witness.orders}
    history = [entry for entry in await provider.history() if entry["order_id"] in whose]
    answers: Counter[str] = Counter()
    for number, entry in enumerate(scene.chance.sample(history, min(len(history), WEBHOOKS))):
        late, forged = YESTERDAY if number % 5 == 3 else 0.0, number % 5 == 4  # noqa: PLR2004 - one in five each
        status = await provider.tell(url, entry, whose[entry["order_id"]], late=late, forged=forged)
        answers[f"{'stale' if late else 'forged' if forged else 'good'} {status}"] += 1
    return {"told": answers.total(), **answers}


async def _replay(scene: Scene, _: Mapping[str, Any]) -> Did:
    topics = {*records.ORDER_REQUESTS, *records.ORDER_EVENTS}
    return {"replayed": await records.replay(scene.stage.settings, scene.since, topics)}


FAULTS: Final[Mapping[str, Fault]] = {
    "provider-down": _provider({"down": True}, AWAY_SECONDS, "the payment provider answers nobody for 4 s"),
    "provider-slow": _provider(
        {"slow": SLOW_SECONDS}, AWAY_SECONDS, "the payment provider takes 2.5 s for each answer"
    ),
    "provider-broken": _provider({"fail": BROKEN_ANSWERS}, 1.0, "the payment provider answers 500, thirty times"),
    "webhooks": Fault("the provider's webhooks all over again, some too late, some forged", _webhooks, pause=1.0),
    "replay-orders": Fault(
        "the topics of orders, payments and deliveries fed back to themselves, while running", _replay
    ),
}
"""Each by its name."""
