"""The rules of payment: the effect of a request, the next call to the provider, and the effect of its response.

An operation is one idempotency key of the provider, with the requested intent and the known outcome. A final outcome
never changes. Without one, the provider is queried; the charge is never repeated under another key. After a void is
requested, no charge is sent: the provider is instructed to prevent any capture, and its response says whether the void
came in time.
"""

from dataclasses import dataclass, replace
from typing import Literal

from inventory_service.messages import Money
from order_service.payment.messages import (
    Captured,
    Charge,
    Declined,
    Event,
    Notified,
    Refund,
    Refunded,
    Request,
    Unknown,
    Void,
    Voided,
)

Wish = Literal["query", "charge", "void", "refund"]
State = Literal["open", "captured", "declined", "voided", "refunded"]

# ---- state ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One operation at the provider: a charge or a refund."""

    key: str
    """The provider's idempotency key: the `payment_id` of a charge, the `refund_id` of a refund."""
    order_id: str
    """The order that the operation belongs to."""
    user_id: str
    """The shopper who placed the order."""
    payment_id: str
    """The key of the charge, also for a refund."""
    wish: Wish
    """The requested intent."""
    amount: Money | None = None
    """The requested amount, `None` before a charge is requested."""
    token: str | None = None
    """The token of the means of payment, `None` after the outcome is known."""
    state: State = "open"
    """The outcome, `open` until the provider has reported one."""
    settled: Money | None = None
    """The captured or refunded amount."""
    reason: str | None = None
    """The reason of a decline or of the last failed attempt."""
    doubted: bool = False
    """True after an attempt without a response or with an undecided one."""


def key_of(request: Request) -> str:
    """Return the key of the operation that a request is about."""
    return request.refund_id if isinstance(request, Refund) else request.payment_id


# ---- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of a request."""

    step: Step
    """The operation after the request."""
    ask: bool
    """True if the provider must be called now."""
    tell: bool
    """True if the known outcome must be published again."""


def accept(operation: Step, request: Request) -> Accepted:
    """Apply a request to its operation. A repeated request changes nothing, but the known outcome is published again.

    The first charge fixes the amount and the token: the provider would refuse others under the same key.
    """
    before = operation
    match request:
        case Charge(amount=amount, token=token) if operation.wish == "query":
            operation = replace(operation, wish="charge", amount=amount, token=token)
        case Void() if operation.wish in {"query", "charge"}:
            operation = replace(operation, wish="void")
        case Refund(amount=amount) if operation.amount is None:
            operation = replace(operation, amount=amount)
        case _:
            pass
    # An open operation has no outcome to report in reply to a new request.
    known = event_of(operation) is not None and (operation.state != "open" or operation == before)
    return Accepted(operation, ask=operation.state == "open", tell=known and not isinstance(request, Notified))


# ---- calls to the provider ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Create:
    """Call: create the charge. A repeated call is the same charge."""

    amount: Money
    token: str


@dataclass(frozen=True, slots=True)
class Read:
    """Call: query the state of the charge."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Call: void the charge. The provider prevents any capture under the key, even if it does not know the key."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Call: refund `amount` of the payment, under the key of the operation."""

    amount: Money


Ask = Create | Read | Tombstone | GiveBack


def next_ask(operation: Step, attempt: int) -> Ask | None:
    """Return the first call of an attempt (1 is the first), `None` if the operation is not open.

    A charge that may have been sent before is queried first: the provider may know it, still undecided.
    """
    if operation.state != "open":
        return None
    match operation.wish:
        case "charge" if attempt == 1:
            return _create_call(operation)
        case "charge" | "query":
            return Read()
        case "void":
            return Tombstone()
        case "refund":
            return GiveBack(_required(operation.amount))


def ask_after(operation: Step, call: Ask, response: "Answer") -> Ask | None:
    """Return the next call of the same attempt, `None` if the response is conclusive for now."""
    if isinstance(call, Read) and isinstance(response, NotThere) and operation.wish == "charge":
        return _create_call(operation)
    return Read() if isinstance(call, Create) and isinstance(response, NoAnswer) else None


def _create_call(operation: Step) -> Create:
    if operation.token is None:
        raise ValueError(f"charge {operation.key} is open, but has no token")
    return Create(_required(operation.amount), operation.token)


def _required(amount: Money | None) -> Money:
    if amount is None:
        raise ValueError("a charge or refund has no amount")
    return amount


# ---- responses ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """A response that describes the charge or refund; `pending` is not a final outcome."""

    status: Literal["pending", "captured", "declined", "voided", "refunded"]
    amount: Money | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class NotThere:
    """A response that the provider does not know the key."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that the provider rejects the call."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No response: the call may have been executed or not."""

    reason: str


Answer = Outcome | NotThere | Refusal | NoAnswer


def conclude(operation: Step, call: Ask, response: Answer) -> Step:
    """Return the operation after a response. It stays open if the response is not a final outcome."""
    match response:
        case Outcome(status="captured" | "refunded" as state, amount=Money() as amount):
            return replace(operation, state=state, settled=amount)
        case Outcome(status="declined" | "voided" as state, reason=reason):
            return replace(operation, state=state, reason=reason)
        case Refusal(reason=reason) if isinstance(call, Create):
            # A rejected charge counts as declined. No other operation is settled by a rejection: a refund that is due
            # stays due, and the audit reports it.
            return replace(operation, state="declined", reason=reason)
        case Outcome():
            return replace(operation, doubted=True, reason="the provider has not decided yet")
        case NotThere():
            return replace(operation, doubted=True, reason="the provider does not know the key")
        case Refusal(reason=reason) | NoAnswer(reason=reason):
            return replace(operation, doubted=True, reason=reason)


def is_asked_for(operation: Step) -> bool:
    """Return True if the provider must be called again. A query is complete after any response."""
    return operation.state == "open" and operation.wish != "query"


# ---- published events -----------------------------------------------------------------------------------------------


def event_of(operation: Step) -> Event | None:
    """Return the event that reports the operation to the order service, `None` before the first attempt has ended."""
    ids = {"order_id": operation.order_id, "user_id": operation.user_id, "payment_id": operation.payment_id}
    match operation.state:
        case "captured":
            return Captured(**ids, amount=_required(operation.settled))
        case "refunded":
            return Refunded(**ids, refund_id=operation.key, amount=_required(operation.settled))
        case "voided":
            return Voided(**ids)
        case "declined":
            # Nothing was captured and nothing will be, which is the requested effect of a void.
            return Voided(**ids) if operation.wish == "void" else Declined(**ids, reason=operation.reason or "declined")
        case "open":
            return Unknown(**ids, reason=operation.reason or "no answer") if operation.doubted else None
