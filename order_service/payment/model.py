"""The rules of payment: the effect of a request, the next call to the provider, and the effect of its response.

An operation is one idempotency key of the provider, with the requested intent and the known outcome. A final outcome
never changes. Without one, the provider is queried; the charge is never repeated under another key. After a void is
requested, no charge is sent: the provider is instructed to prevent any capture, and its response says whether the void
came in time.
"""

from dataclasses import dataclass, replace
from typing import Literal

from contracts.inventory import Money
from contracts.payments import (
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

Intent = Literal["query", "charge", "void", "refund"]
State = Literal["open", "captured", "declined", "voided", "refunded"]

# ---- state ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation at the provider: a charge or a refund."""

    key: str
    """The provider's idempotency key: the `payment_id` of a charge, the `refund_id` of a refund."""
    order_id: str
    """The order that the operation belongs to."""
    user_id: str
    """The shopper who placed the order."""
    payment_id: str
    """The key of the charge, also for a refund."""
    intent: Intent
    """The requested intent."""
    amount: Money | None = None
    """The requested amount, `None` before a charge is requested."""
    token: str | None = None
    """The token of the means of payment, `None` after the outcome is known."""
    state: State = "open"
    """The outcome, `open` until the provider has reported one."""
    settled_amount: Money | None = None
    """The captured or refunded amount."""
    reason: str | None = None
    """The reason of a decline or of the last failed attempt."""
    outcome_unknown: bool = False
    """True after an attempt without a response or with an undecided one."""


def operation_key(request: Request) -> str:
    """Return the key of the operation that a request is about."""
    return request.refund_id if isinstance(request, Refund) else request.payment_id


# ---- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OperationUpdate:
    """The result of a request."""

    operation: Operation
    """The operation after the request."""
    must_call_provider: bool
    """True if the provider must be called now."""
    must_republish: bool
    """True if the known outcome must be published again."""


def apply_request(operation: Operation, request: Request) -> OperationUpdate:
    """Apply a request to its operation. A repeated request changes nothing, but the known outcome is published again.

    The first charge fixes the amount and the token: the provider would refuse others under the same key.
    """
    before = operation
    match request:
        case Charge(amount=amount, token=token) if operation.intent == "query":
            operation = replace(operation, intent="charge", amount=amount, token=token)
        case Void() if operation.intent in {"query", "charge"}:
            operation = replace(operation, intent="void")
        case Refund(amount=amount) if operation.amount is None:
            operation = replace(operation, amount=amount)
        case _:
            pass
    # An open operation has no outcome to report in reply to a new request.
    known = event_of(operation) is not None and (operation.state != "open" or operation == before)
    return OperationUpdate(
        operation,
        must_call_provider=operation.state == "open",
        must_republish=known and not isinstance(request, Notified),
    )


# ---- calls to the provider ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateCharge:
    """Call: create the charge. A repeated call is the same charge."""

    amount: Money
    token: str


@dataclass(frozen=True, slots=True)
class QueryCharge:
    """Call: query the state of the charge."""


@dataclass(frozen=True, slots=True)
class VoidCharge:
    """Call: void the charge. The provider prevents any capture under the key, even if it does not know the key."""


@dataclass(frozen=True, slots=True)
class CreateRefund:
    """Call: refund `amount` of the payment, under the key of the operation."""

    amount: Money


ProviderCall = CreateCharge | QueryCharge | VoidCharge | CreateRefund


def first_call(operation: Operation, attempt: int) -> ProviderCall | None:
    """Return the first call of an attempt (1 is the first), `None` if the operation is not open.

    A charge that may have been sent before is queried first: the provider may know it, still undecided.
    """
    if operation.state != "open":
        return None
    match operation.intent:
        case "charge" if attempt == 1:
            return _create_call(operation)
        case "charge" | "query":
            return QueryCharge()
        case "void":
            return VoidCharge()
        case "refund":
            return CreateRefund(_required(operation.amount))


def follow_up_call(operation: Operation, call: ProviderCall, response: "ProviderResponse") -> ProviderCall | None:
    """Return the next call of the same attempt, `None` if the response is conclusive for now."""
    if isinstance(call, QueryCharge) and isinstance(response, KeyUnknown) and operation.intent == "charge":
        return _create_call(operation)
    return QueryCharge() if isinstance(call, CreateCharge) and isinstance(response, NoResponse) else None


def _create_call(operation: Operation) -> CreateCharge:
    if operation.token is None:
        raise ValueError(f"charge {operation.key} is open, but has no token")
    return CreateCharge(_required(operation.amount), operation.token)


def _required(amount: Money | None) -> Money:
    if amount is None:
        raise ValueError("a charge or refund has no amount")
    return amount


# ---- responses ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatusReport:
    """A response that describes the charge or refund; `pending` is not a final outcome."""

    status: Literal["pending", "captured", "declined", "voided", "refunded"]
    amount: Money | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class KeyUnknown:
    """A response that the provider does not know the key."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A response that the provider rejects the call."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoResponse:
    """No response: the call may have been executed or not."""

    reason: str


ProviderResponse = StatusReport | KeyUnknown | Rejection | NoResponse


def apply_response(operation: Operation, call: ProviderCall, response: ProviderResponse) -> Operation:
    """Return the operation after a response. It stays open if the response is not a final outcome."""
    match response:
        case StatusReport(status="captured" | "refunded" as state, amount=Money() as amount):
            return replace(operation, state=state, settled_amount=amount)
        case StatusReport(status="declined" | "voided" as state, reason=reason):
            return replace(operation, state=state, reason=reason)
        case Rejection(reason=reason) if isinstance(call, CreateCharge):
            # A rejected charge counts as declined. No other operation is settled by a rejection: a refund that is due
            # stays due, and the audit reports it.
            return replace(operation, state="declined", reason=reason)
        case StatusReport():
            return replace(operation, outcome_unknown=True, reason="the provider has not decided yet")
        case KeyUnknown():
            return replace(operation, outcome_unknown=True, reason="the provider does not know the key")
        case Rejection(reason=reason) | NoResponse(reason=reason):
            return replace(operation, outcome_unknown=True, reason=reason)


def is_unfinished(operation: Operation) -> bool:
    """Return True if the provider must be called again. A query is complete after any response."""
    return operation.state == "open" and operation.intent != "query"


# ---- published events -----------------------------------------------------------------------------------------------


def event_of(operation: Operation) -> Event | None:
    """Return the event that reports the operation to the order service, `None` before the first attempt has ended."""
    ids = {"order_id": operation.order_id, "user_id": operation.user_id, "payment_id": operation.payment_id}
    match operation.state:
        case "captured":
            return Captured(**ids, amount=_required(operation.settled_amount))
        case "refunded":
            return Refunded(**ids, refund_id=operation.key, amount=_required(operation.settled_amount))
        case "voided":
            return Voided(**ids)
        case "declined":
            # Nothing was captured and nothing will be, which is the requested effect of a void.
            return (
                Voided(**ids) if operation.intent == "void" else Declined(**ids, reason=operation.reason or "declined")
            )
        case "open":
            return Unknown(**ids, reason=operation.reason or "no answer") if operation.outcome_unknown else None
