"""Every order in which messages can arrive, each any number of times: one end, with money and stock in balance.

This is exhaustive. From each reachable state, each message that was ever sent is delivered, again and again,
until no delivery leads to a new state. A planted bug must not survive the same walk.
"""

import pytest

from contracts import orders
from contracts.inventory import Money
from order_service import state
from tests.testkit.order_bugs import PLANTED_BUGS
from tests.testkit.order_model import (
    IDS,
    Scenario,
    SimulatedShop,
    begin,
    liveness_violation,
    safety_violation,
    successors,
)

EITHER = frozenset({"delivered", "cancelled"})
CANCELLED = frozenset({"cancelled"})
CANCEL = orders.Cancel(**IDS)
TOO_MUCH = orders.Refund(**IDS, amount=Money(amount=200, currency="GBP"))
REFUND = orders.Refund(**IDS, amount=Money(amount=120, currency="GBP"))

SCENARIOS = [
    Scenario("happy"),
    Scenario("happy, with a deadline at any time", deadline=True, ends=EITHER),
    Scenario("refused", commit="cart_changed", ends=CANCELLED),
    Scenario("refused and cancelled", commit="out_of_stock", requests=(CANCEL,), ends=CANCELLED),
    Scenario("declined", provider="declines", ends=CANCELLED),
    Scenario("declined and cancelled", provider="declines", requests=(CANCEL,), ends=CANCELLED),
    Scenario("the provider is silent", provider="is silent", deadline=True, ends=CANCELLED),
    Scenario(
        "the provider is silent, and cancelled", provider="is silent", requests=(CANCEL,), deadline=True, ends=CANCELLED
    ),
    Scenario("captured late, or voided", provider="answers late", deadline=True, ends=EITHER),
    Scenario("a wrong amount", provider="errs", ends=CANCELLED),
    Scenario("a wrong amount, and cancelled", provider="errs", requests=(CANCEL,), ends=CANCELLED),
    Scenario("cancelled at any point", requests=(CANCEL,), ends=EITHER),
    Scenario("cancelled at any point, and the parcel fails", carrier="fails", requests=(CANCEL,), ends=CANCELLED),
    Scenario("delivery failed", carrier="fails", ends=CANCELLED),
    Scenario("a part refunded", requests=(REFUND,)),
    Scenario("a part refunded, and the parcel fails", carrier="fails", requests=(REFUND,), ends=CANCELLED),
    Scenario("asked to pay again", provider="answers late", requests=(orders.Pay(**IDS),)),
]


class Walk:
    """All worlds that can be reached, and what is wrong in one of them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.leads_to: dict[SimulatedShop, list[SimulatedShop]] = {}
        self.wrong: str | None = None

    def run(self) -> "Walk":
        """Walk until everything was seen, or something is wrong."""
        first = begin(self.scenario)
        found, self.leads_to = [first], {first: []}
        while found and self.wrong is None:
            world = found.pop()
            try:
                after = self.leads_to[world] = list(successors(world, self.scenario))
            except state.UnexpectedMessage as stray:
                self.wrong = f"stray: {stray}"
                break
            self.wrong = safety_violation(world) or (None if after else liveness_violation(world, self.scenario))
            for each in after:
                if each not in self.leads_to:
                    self.leads_to[each] = []
                    found.append(each)
        return self

    @property
    def ends(self) -> set[tuple[str, str | None]]:
        """How it can end: status and reason."""
        return {(w.order.status, w.order.reason) for w, after in self.leads_to.items() if not after and w.order}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_every_arrival_ends_once_and_in_balance(scenario: Scenario) -> None:
    walk = Walk(scenario).run()
    assert walk.wrong is None
    assert {status for status, _ in walk.ends} == scenario.ends


ALL_AT_ONCE = [
    Scenario("together", "committed", provider, carrier, asked, deadline=True, ends=EITHER)
    for provider in ("approves", "declines", "errs", "answers late", "is silent")
    for carrier in ("delivers", "fails")
    for asked in ((CANCEL, REFUND), (REFUND, TOO_MUCH), (CANCEL, orders.Pay(**IDS)))
]


def test_whatever_comes_together_ends_in_balance() -> None:
    walks = [Walk(scenario).run() for scenario in ALL_AT_ONCE]
    assert [(walk.scenario, walk.wrong) for walk in walks if walk.wrong] == []
    ends = set().union(*(walk.ends for walk in walks))
    reasons = {"cancelled", "declined", "payment_unavailable", "wrong_amount", "delivery_failed"}
    assert ends == {("delivered", None), *(("cancelled", reason) for reason in reasons)}
    assert sum(len(walk.leads_to) for walk in walks) > 4_000, "worlds that are different"


@pytest.mark.parametrize("bug", PLANTED_BUGS)
def test_a_planted_bug_does_not_survive(bug: str) -> None:
    with PLANTED_BUGS[bug]():
        assert any(Walk(scenario).run().wrong for scenario in SCENARIOS)
