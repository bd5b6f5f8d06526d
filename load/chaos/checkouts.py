"""How shoppers check out: with cards that work and cards that do not, twice at once, too late, and regretting it.

Choices only; `chance` decides them all. `shoppers` carries them out.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from load.client import new_id
from load.protocol import Conversation, Frame


class Card(NamedTuple):
    """What stands for a means of payment, and whether its owner lives where each parcel comes back from."""

    token: str
    comes_back: bool = False


GOOD: Final = Card("tok_approve")
FAULTY: Final = tuple(map(Card, ("tok_decline", "tok_timeout", "tok_late", "tok_twice", "tok_wrong_amount")))
HAND: Final = (*[GOOD] * (4 * len(FAULTY) - 1), Card(GOOD.token, comes_back=True), *FAULTY)
"""One in five is a card with which something goes wrong; of the others, one in twenty is of nobody's address."""
Way = Literal["socket", "two tabs", "http", "old version", "wrong total", "items"]
WAYS: Final[Mapping[Way, int]] = {
    "socket": 66,
    "two tabs": 10,
    "http": 10,
    "old version": 5,
    "wrong total": 4,
    "items": 5,
}
NEVER_PAID: Final[frozenset[Way]] = frozenset({"old version", "wrong total"})
"""These are refused, and no card is wasted on them."""
REGRETS: Final = 0.2
"""The share of orders whose shopper wants to cancel them, at once or later."""
REGRETS_WITHIN: Final = 4.0
ADDRESS: Final = {
    "name": "Ada Byron",
    "line1": "12 St James's Square",
    "city": "London",
    "postal_code": "SW1Y 4JH",
    "country": "GB",
}
NOBODY: Final = {**ADDRESS, "name": "FAIL"}
"""An address from which the simulated carrier brings each parcel back."""
CONTACT: Final = {"email": "ada@example.com", "phone": "+44 20 7930 0000"}


def way(chance: random.Random) -> Way:
    """How the next checkout is made."""
    return chance.choices(list(WAYS), list(WAYS.values()))[0]


def deal(chance: random.Random) -> Iterator[Card]:
    """Cards without end, hand after hand, each shuffled: every kind comes, and soon."""
    while True:
        hand = list(HAND)
        chance.shuffle(hand)
        yield from hand


def checkout(chosen: Way, conversation: Conversation, product: str, card: Card, chance: random.Random) -> Frame:
    """The frame of a checkout of the cart as its client shows it, or of some units of `product` without a cart."""
    frame: dict[str, Any] = {
        "id": new_id(),
        "type": "checkout",
        "address": NOBODY if card.comes_back else ADDRESS,
        "contact": CONTACT,
        "payment": {"token": card.token},
    }
    if chosen == "items":
        return {**frame, "items": [{"product": product, "quantity": chance.randint(1, 2)}]}
    version = conversation.version - (1 if chosen == "old version" else 0)
    if chosen == "wrong total":
        frame["expect"] = {"total": {"amount": 1, "currency": "GBP"}}
    return {**frame, "version": max(0, version)}


def posted(frame: Frame) -> dict[str, Any]:
    """The body of `POST /v1/orders` that asks for the same."""
    return {name: value for name, value in frame.items() if name not in {"id", "type"}}


def regrets(chance: random.Random) -> float | None:
    """After how many seconds a shopper cancels an order; none for one who keeps it."""
    return chance.uniform(0, REGRETS_WITHIN) if chance.random() < REGRETS else None
