"""The rules of payment: what a request wants, what the provider is to be asked for it, and what its answer means.

A step is what is wanted of one idempotency key of the provider, and what the provider has said. A step with an outcome
keeps it for ever. One without is asked about, never charged under another key; and once a void is wanted, nothing is
charged any more: the provider is told to let nothing be captured, and says whether that came in time.
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
    """One key of the provider's: `payment_id`, or the `refund_id` of money that is given back."""

    key: str
    order_id: str
    user_id: str
    payment_id: str
    wish: Wish
    amount: Money | None = None
    token: str | None = None
    state: State = "open"
    settled: Money | None = None
    """What was captured, or given back."""
    reason: str | None = None
    doubted: bool = False
    """An attempt had no answer, or one that is none yet."""


def key_of(request: Request) -> str:
    """The step that a request is about."""
    return request.refund_id if isinstance(request, Refund) else request.payment_id


# ---- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """A step after a request; whether to ask the provider now, and whether to tell again what is known."""

    step: Step
    ask: bool
    tell: bool


def accept(step: Step, request: Request) -> Accepted:
    """What `request` makes of its step. A repetition changes nothing; what is known is told again.

    The first charge fixes amount and token: they belong to the key, and the provider would refuse others.
    """
    before = step
    match request:
        case Charge(amount=amount, token=token) if step.wish == "query":
            step = replace(step, wish="charge", amount=amount, token=token)
        case Void() if step.wish in {"query", "charge"}:
            step = replace(step, wish="void")
        case Refund(amount=amount) if step.amount is None:
            step = replace(step, amount=amount)
        case _:
            pass
    # That nothing is known yet is no answer to something new.
    told = event_of(step) is not None and (step.state != "open" or step == before)
    return Accepted(step, ask=step.state == "open", tell=told and not isinstance(request, Notified))


# ---- what to ask ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Create:
    """Capture this under the key; made again, it is the same charge."""

    amount: Money
    token: str


@dataclass(frozen=True, slots=True)
class Read:
    """What became of the key?"""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Let nothing be captured under the key, known or not."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Give this much of the payment back, under the step's key."""

    amount: Money


Ask = Create | Read | Tombstone | GiveBack


def next_ask(step: Step, attempt: int) -> Ask | None:
    """What the provider is to be asked in this attempt, 1 being the first; none when nothing is open.

    A charge that may have been sent before is asked about first: it may be there, undecided for now.
    """
    if step.state != "open":
        return None
    match step.wish:
        case "charge" if attempt == 1:
            return _creation(step)
        case "charge" | "query":
            return Read()
        case "void":
            return Tombstone()
        case "refund":
            return GiveBack(_known(step.amount))


def ask_after(step: Step, ask: Ask, answer: "Answer") -> Ask | None:
    """What is to be asked next in the same attempt; none when the answer says all there is to know for now."""
    if isinstance(ask, Read) and isinstance(answer, NotThere) and step.wish == "charge":
        return _creation(step)
    return Read() if isinstance(ask, Create) and isinstance(answer, NoAnswer) else None


def _creation(step: Step) -> Create:
    if step.token is None:
        raise ValueError(f"charge {step.key} is open and has no token")
    return Create(_known(step.amount), step.token)


def _known(amount: Money | None) -> Money:
    if amount is None:
        raise ValueError("a charge or a refund without an amount")
    return amount


# ---- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the provider says of a key; `pending` is no outcome yet."""

    status: Literal["pending", "captured", "declined", "voided", "refunded"]
    amount: Money | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class NotThere:
    """The provider does not know the key."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The provider will not do it, and says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """It may have been done or not."""

    reason: str


Answer = Outcome | NotThere | Refusal | NoAnswer


def conclude(step: Step, ask: Ask, answer: Answer) -> Step:
    """The step as it is known after an answer; still open when that settles nothing."""
    match answer:
        case Outcome(status="captured" | "refunded" as state, amount=Money() as amount):
            return replace(step, state=state, settled=amount)
        case Outcome(status="declined" | "voided" as state, reason=reason):
            return replace(step, state=state, reason=reason)
        case Refusal(reason=reason) if isinstance(ask, Create):
            # A charge that the provider won't take is one that it declines. Nothing else may be settled by a refusal:
            # money that is owed stays owed, and the audit counts it.
            return replace(step, state="declined", reason=reason)
        case Outcome():
            return replace(step, doubted=True, reason="the provider has not decided yet")
        case NotThere():
            return replace(step, doubted=True, reason="the provider does not know it")
        case Refusal(reason=reason) | NoAnswer(reason=reason):
            return replace(step, doubted=True, reason=reason)


def is_asked_for(step: Step) -> bool:
    """Whether the provider has to be asked on: a mere question is answered by whatever it said."""
    return step.state == "open" and step.wish != "query"


# ---- what is told ---------------------------------------------------------------------------------------------------


def event_of(step: Step) -> Event | None:
    """What is known of the step, to be told to orders; none while nothing is."""
    names = {"order_id": step.order_id, "user_id": step.user_id, "payment_id": step.payment_id}
    match step.state:
        case "captured":
            return Captured(**names, amount=_known(step.settled))
        case "refunded":
            return Refunded(**names, refund_id=step.key, amount=_known(step.settled))
        case "voided":
            return Voided(**names)
        case "declined":
            # Nothing was captured and nothing will be: that is what a void asks for.
            return Voided(**names) if step.wish == "void" else Declined(**names, reason=step.reason or "declined")
        case "open":
            return Unknown(**names, reason=step.reason or "no answer") if step.doubted else None
