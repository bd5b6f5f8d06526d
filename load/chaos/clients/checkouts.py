"""Choices of how shoppers check out: valid and failing cards, twice at once, with an old version, with cancellation.

Choices only, all drawn from `chance`; `recording_client` carries them out.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from load.client import new_id
from load.protocol import ClientState, Frame


class Card(NamedTuple):
    """Payment token, and whether its owner's address is undeliverable."""

    token: str
    undeliverable: bool = False


VALID_CARD: Final = Card("tok_approve")
FAILING_CARDS: Final = tuple(map(Card, ("tok_decline", "tok_timeout", "tok_late", "tok_twice", "tok_wrong_amount")))
CARD_BATCH: Final = (
    *[VALID_CARD] * (4 * len(FAILING_CARDS) - 1),
    Card(VALID_CARD.token, undeliverable=True),
    *FAILING_CARDS,
)
"""One batch of cards: one in five fails, and of the others one in twenty has an undeliverable address."""
CheckoutKind = Literal["socket", "two tabs", "http", "old version", "wrong total", "items"]
KIND_WEIGHTS: Final[Mapping[CheckoutKind, int]] = {
    "socket": 66,
    "two tabs": 10,
    "http": 10,
    "old version": 5,
    "wrong total": 4,
    "items": 5,
}
REFUSED_KINDS: Final[frozenset[CheckoutKind]] = frozenset({"old version", "wrong total"})
"""Kinds of checkout that are refused, so that no failing card is spent on them."""
CANCEL_SHARE: Final = 0.2
"""Share of orders whose shopper tries to cancel them, at once or later."""
MAX_CANCEL_DELAY_SECONDS: Final = 4.0
ADDRESS: Final = {
    "name": "Ada Byron",
    "line1": "12 St James's Square",
    "city": "London",
    "postal_code": "SW1Y 4JH",
    "country": "GB",
}
UNDELIVERABLE_ADDRESS: Final = {**ADDRESS, "name": "FAIL"}
"""Address from which the simulated carrier returns each parcel."""
CONTACT: Final = {"phone": "+44 20 7930 0000"}


def choose_kind(chance: random.Random) -> CheckoutKind:
    """Return the kind of the next checkout."""
    return chance.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]


def assign_cards(chance: random.Random) -> Iterator[Card]:
    """Yield cards indefinitely, in shuffled batches, so that every kind occurs soon."""
    while True:
        hand = list(CARD_BATCH)
        chance.shuffle(hand)
        yield from hand


def checkout_frame(
    chosen: CheckoutKind, conversation: ClientState, product: str, card: Card, chance: random.Random
) -> Frame:
    """Return a checkout frame for the cart as its client shows it, or for some units of `product` without the cart."""
    request_id = new_id()
    frame: dict[str, Any] = {
        "id": request_id,
        "type": "checkout",
        "address": UNDELIVERABLE_ADDRESS if card.undeliverable else ADDRESS,
        "contact": {**CONTACT, "email": f"{request_id}@example.com"},  # one address gets a limited number of mails
        "payment": {"token": card.token},
    }
    if chosen == "items":
        return {**frame, "items": [{"product": product, "quantity": chance.randint(1, 2)}]}
    version = conversation.version - (1 if chosen == "old version" else 0)
    if chosen == "wrong total":
        frame["expect"] = {"total": {"amount": 1, "currency": "GBP"}}
    return {**frame, "version": max(0, version)}


def http_body(frame: Frame) -> dict[str, Any]:
    """Return the equivalent body of `POST /v1/orders`."""
    return {name: value for name, value in frame.items() if name not in {"id", "type"}}


def cancel_delay(chance: random.Random) -> float | None:
    """Return after how many seconds the shopper cancels an order, or `None` to keep it."""
    return chance.uniform(0, MAX_CANCEL_DELAY_SECONDS) if chance.random() < CANCEL_SHARE else None
