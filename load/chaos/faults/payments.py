"""Faults of payment: a provider that is down, slow or failing, repeated webhooks, and replayed order topics."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from load.chaos.faults import records
from load.chaos.faults.context import Effect, Fault, FaultContext

AWAY_SECONDS: Final = 4.0
SLOW_SECONDS: Final = 2.5
BROKEN_ANSWERS: Final = 30
WEBHOOKS: Final = 40
YESTERDAY: Final = 86_400.0


def _provider(how: Mapping[str, Any], seconds: float, about: str) -> Fault:
    async def act(context: FaultContext, _: Mapping[str, Any]) -> Effect:
        provider = context.shop.provider
        await provider.control(**how)
        try:
            (refused, waited), _ended = await asyncio.gather(provider.probe_refusal(), asyncio.sleep(seconds))
        finally:
            await provider.control()
        return {"felt": waited >= how["slow"] if "slow" in how else refused}

    return Fault(about, act)


async def _webhooks(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    """Resend webhooks of past decisions in random order; one in five is a day old, one in five is forged."""
    provider, url = context.shop.provider, context.shop.webhook_url
    user_of = {order: client.user for client in context.clients for order in client.orders}
    history = [entry for entry in await provider.history() if entry["order_id"] in user_of]
    responses: Counter[str] = Counter()
    for number, entry in enumerate(context.chance.sample(history, min(len(history), WEBHOOKS))):
        late, forged = YESTERDAY if number % 5 == 3 else 0.0, number % 5 == 4  # noqa: PLR2004 - one in five each
        status = await provider.send_webhook(url, entry, user_of[entry["order_id"]], late=late, forged=forged)
        responses[f"{'stale' if late else 'forged' if forged else 'good'} {status}"] += 1
    return {"told": responses.total(), **responses}


async def _replay(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    topics = {*records.ORDER_REQUESTS, *records.ORDER_EVENTS}
    return {"replayed": await records.replay_records(context.shop.settings, context.since, topics)}


FAULTS: Final[Mapping[str, Fault]] = {
    "provider-down": _provider({"down": True}, AWAY_SECONDS, "the payment provider does not answer for 4 s"),
    "provider-slow": _provider({"slow": SLOW_SECONDS}, AWAY_SECONDS, "the payment provider takes 2.5 s per answer"),
    "provider-broken": _provider({"fail": BROKEN_ANSWERS}, 1.0, "the payment provider answers 500 thirty times"),
    "webhooks": Fault("repeated webhooks of the provider, some too old, some forged", _webhooks, mean_pause=1.0),
    "replay-orders": Fault("the topics of orders, payments and deliveries replayed to themselves under load", _replay),
}
