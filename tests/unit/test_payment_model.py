"""The rules of payment: by cases, and by thousands of faulty runs with the provider's own ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.inventory import Money
from contracts.orders import Payment, is_probable_card_number
from contracts.payments import Captured, Charge, Declined, Notified, Query, Refund, Refunded, Void, Voided
from infrastructure.audit import order_accounts as audited
from order_service.payment.audit import ProviderHistory, differences
from order_service.payment.model import (
    CreateCharge,
    CreateRefund,
    KeyUnknown,
    NoResponse,
    Operation,
    ProviderCall,
    ProviderResponse,
    QueryCharge,
    Rejection,
    StatusReport,
    VoidCharge,
    apply_request,
    apply_response,
    event_of,
    first_call,
    follow_up_call,
    is_unfinished,
)
from order_service.payment.provider.database import Conflict, ProviderDatabase, RequestedCharge
from tests.testkit.effort import histories

OF = {"order_id": "o-1", "user_id": "ann", "payment_id": "p-1"}
TEN = Money(amount=1000, currency="GBP")
NEW = Operation(key="p-1", order_id="o-1", user_id="ann", payment_id="p-1", intent="query")
CHARGE = Charge(**OF, amount=TEN, token="tok_approve")
CHARGED = apply_request(NEW, CHARGE).operation
VOIDED = apply_request(CHARGED, Void(**OF)).operation
BACK = replace(NEW, key="r-1", intent="refund", amount=TEN)


def test_a_charge_is_sent_once_and_then_asked_about() -> None:
    assert first_call(CHARGED, 1) == CreateCharge(TEN, "tok_approve")
    assert [first_call(CHARGED, attempt) for attempt in (2, 3, 50)] == [QueryCharge()] * 3
    assert follow_up_call(CHARGED, CreateCharge(TEN, "tok_approve"), NoResponse("late")) == QueryCharge()
    assert follow_up_call(CHARGED, QueryCharge(), KeyUnknown()) == CreateCharge(TEN, "tok_approve"), (
        "under the same key"
    )
    assert follow_up_call(CHARGED, QueryCharge(), StatusReport("pending")) is None


def test_once_a_void_is_wanted_nothing_is_charged_any_more() -> None:
    for first, second in ((CHARGE, Void(**OF)), (Void(**OF), CHARGE)):
        step = apply_request(apply_request(NEW, first).operation, second).operation
        assert step.intent == "void"
        assert {first_call(step, attempt) for attempt in range(1, 9)} == {VoidCharge()}
        assert follow_up_call(step, VoidCharge(), KeyUnknown()) is None


def test_a_settled_payment_stays_settled() -> None:
    taken = apply_response(CHARGED, QueryCharge(), StatusReport("captured", TEN))
    assert event_of(taken) == Captured(**OF, amount=TEN)
    for request in (CHARGE, Void(**OF), Query(**OF)):
        accepted = apply_request(taken, request)
        assert (accepted.operation.state, accepted.must_call_provider, accepted.must_republish) == (
            "captured",
            False,
            True,
        )
        assert first_call(accepted.operation, 1) is None
    assert apply_request(taken, Notified(**OF)).must_republish is False


def test_unknown_is_answered_again_for_the_same_request_only() -> None:
    doubted = apply_response(CHARGED, CreateCharge(TEN, "tok_approve"), NoResponse("late"))
    assert apply_request(CHARGED, CHARGE).must_republish is False
    assert apply_request(doubted, CHARGE).must_republish is True
    assert apply_request(doubted, Void(**OF)).must_republish is False, "that is no answer to it"


def test_a_declined_payment_satisfies_a_void() -> None:
    declined = apply_response(CHARGED, CreateCharge(TEN, "tok_decline"), StatusReport("declined", reason="no"))
    assert event_of(declined) == Declined(**OF, reason="no")
    assert event_of(apply_request(declined, Void(**OF)).operation) == Voided(**OF)


def test_a_refusal_settles_a_charge_and_nothing_else() -> None:
    assert apply_response(CHARGED, CreateCharge(TEN, "tok_x"), Rejection("no such token")).state == "declined"
    for step, ask in ((VOIDED, VoidCharge()), (BACK, CreateRefund(TEN)), (CHARGED, QueryCharge())):
        left = apply_response(step, ask, Rejection("no"))
        assert (left.state, is_unfinished(left)) == ("open", True), "what is owed stays owed"


def test_money_is_given_back_under_its_own_key() -> None:
    asked = apply_request(replace(BACK, amount=None), Refund(**OF, refund_id="r-1", amount=TEN)).operation
    assert first_call(asked, 7) == CreateRefund(TEN)
    given_back = apply_response(asked, CreateRefund(TEN), StatusReport("refunded", TEN))
    assert event_of(given_back) == Refunded(**OF, refund_id="r-1", amount=TEN)


def test_a_question_is_answered_by_whatever_is_said() -> None:
    assert first_call(NEW, 1) == QueryCharge()
    assert not is_unfinished(apply_response(NEW, QueryCharge(), KeyUnknown()))
    assert apply_request(apply_response(NEW, QueryCharge(), KeyUnknown()), CHARGE).operation.intent == "charge"


# ---- bad days -------------------------------------------------------------------------------------------------------

REQUESTS = (CHARGE, CHARGE, Void(**OF), Query(**OF), Notified(**OF))
DAYS = st.lists(
    st.one_of(
        st.sampled_from(REQUESTS),
        st.sampled_from(["ask", "ask, unheard", "ask, unanswered", "time passes"]),
    ),
    max_size=25,
)


class PaymentRun:
    """One payment, one provider with its real books, and a line between them that loses questions and answers."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.books = ProviderDatabase(":memory:")
        self.step: Operation | None = None
        self.attempt = 0

    def request(self, request: Charge | Void | Query | Notified) -> None:
        if isinstance(request, Charge):
            request = request.model_copy(update={"token": self.token})
        if self.step is not None or not isinstance(request, Notified):
            self.step = apply_request(self.step or NEW, request).operation

    def ask(self, how: str = "ask") -> None:
        if self.step is None:
            return
        self.attempt += 1
        question = first_call(self.step, self.attempt)
        while question is not None:
            answer = NoResponse("lost") if how == "ask, unheard" else self.answered(question)
            if how == "ask, unanswered":
                answer = NoResponse("lost")
            following = follow_up_call(self.step, question, answer)
            if following is None:
                before, self.step = self.step, apply_response(self.step, question, answer)
                assert before.state in {"open", self.step.state}
            question = following

    def answered(self, question: ProviderCall) -> ProviderResponse:
        match question:
            case CreateCharge(amount=amount, token=token):
                outcome = {"tok_approve": ("captured", amount.amount), "tok_decline": ("declined", None)}.get(token)
                try:
                    self.books.create_charge(RequestedCharge("p-1", amount.amount, amount.currency, token), outcome)  # type: ignore[arg-type]
                except Conflict as conflict:
                    return Rejection(conflict.detail)
            case VoidCharge():
                self.books.void("p-1")
            case QueryCharge():
                pass
            case CreateRefund():
                raise AssertionError("nobody asked for money back")
        charge = self.books.charge("p-1")
        if charge is None:
            return KeyUnknown()
        known = None if charge["amount"] is None else Money(amount=charge["amount"], currency=charge["currency"])
        return StatusReport(charge["status"], known)

    def time_passes(self) -> None:
        if self.token == "tok_late" and self.books.charge("p-1"):
            self.books.settle_charge("p-1", ("captured", 1000))


@settings(max_examples=histories(600), deadline=None)
@given(st.sampled_from(["tok_approve", "tok_decline", "tok_timeout", "tok_late"]), DAYS)
def test_whatever_is_lost_nothing_is_charged_twice_and_in_the_end_both_sides_agree(
    token: str, steps: list[Charge | Void | Query | Notified | str]
) -> None:
    day = PaymentRun(token)
    for step in steps:
        match step:
            case "time passes":
                day.time_passes()
            case str():
                day.ask(step)
            case request:
                day.request(request)
    day.request(Void(**OF))
    for _ in range(3):  # the line is well again
        day.ask()
        day.time_passes()
    history = day.books.history(0, 100)
    assert len(history) == 1, "decided once"
    assert day.step is not None
    assert day.step.state == history[0]["type"]
    assert day.step.key == "p-1"
    amount = day.step.settled_amount.amount if day.step.settled_amount else None
    assert found_between({"p-1": (day.step.state, amount)}, history) == []
    told = event_of(day.step)
    assert isinstance(told, Captured if day.step.state == "captured" else Voided)
    day.books.close()


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def found_between(
    stored: Mapping[str, tuple[str, int | None]],
    history: Sequence[Mapping[str, Any]],
    order: str = "o",
    at: float = 0.0,
) -> list[str]:
    """Return the differences between the provider's history and what payment has stored at noon about one order."""
    operations = [
        audited.Operation(
            key=key,
            user="ann",
            intent="refund" if state == "refunded" else "charge",
            state=state,
            amount=None if amount is None else audited.Amount(minor=amount, currency="GBP"),
            at=NOON.timestamp() + at,
        )
        for key, (state, amount) in stored.items()
    ]
    return [*differences({order: operations} if operations else {}, ProviderHistory(history, NOON))]


def entry(type_: str, amount: int | None = None, key: str = "a", order: str = "o") -> dict[str, Any]:
    """Return an entry of the provider's history."""
    return {"key": key, "charge": key, "type": type_, "amount": amount, "currency": "GBP", "order_id": order}


@pytest.mark.parametrize(
    ("stored", "history", "expected"),
    [
        (
            {"a": ("voided", None)},
            [entry("captured", 10)],
            "reports captured (10 GBP minor units), payment has stored v",
        ),
        ({"a": ("declined", None)}, [entry("captured", 10)], "payment has stored declined"),
        ({"a": ("captured", 9)}, [entry("captured", 10)], "payment has stored captured (9 GBP minor units)"),
        (
            {"a": ("captured", 10)},
            [],
            "has stored a as captured (10 GBP minor units); the provider knows nothing of it",
        ),
        (
            {"a": ("refunded", 10)},
            [],
            "has stored a as refunded (10 GBP minor units); the provider knows nothing of it",
        ),
        ({"a": ("voided", None)}, [], "has stored a as voided; the provider knows nothing of it"),
        ({"a": ("voided", None)}, [entry("voided"), entry("captured", 10)], "reports voided, and later captured (10"),
        ({}, [entry("captured", 1, "a"), entry("captured", 1, "b")], "the provider captured a, and later b"),
        ({"a": ("open", None)}, [entry("captured", 1, "b")], "has b as captured (1 GBP minor units); payment has no"),
        ({"a": ("open", None)}, [entry("refunded", 1, "r")], "has r as refunded (1 GBP minor units); payment has no"),
        ({"a": ("captured", 1)}, [entry("captured", 1, "a", "p")], "belongs to it, but to order p at the provider"),
    ],
)
def test_the_audit_finds_each_difference_with_the_provider_and_names_the_order(
    stored: dict[str, tuple[str, int | None]], history: list[dict[str, Any]], expected: str
) -> None:
    [found] = found_between(stored, history)
    assert expected in found
    assert found.startswith("order o: ") or "and later captured" in found


@pytest.mark.parametrize(
    ("stored", "history", "at"),
    [
        ({"a": ("captured", 10)}, [entry("captured", 10)], 0),
        ({"a": ("captured", 10), "r": ("refunded", 4)}, [entry("captured", 10), entry("refunded", 4, "r")], 0),
        ({"a": ("open", None)}, [entry("captured", 10)], 0),
        ({"a": ("open", None)}, [], 0),
        ({"a": ("declined", None)}, [], 0),
        ({"a": ("captured", 10)}, [], 1),
        ({"a": ("voided", None)}, [entry("voided"), entry("captured", 1, "not ours", "p")], 0),
    ],
    ids=["captured", "refunded", "on its way", "not sent", "rejected", "settled after the read", "of another shop"],
)
def test_what_agrees_or_is_on_its_way_is_no_difference(
    stored: dict[str, tuple[str, int | None]], history: list[dict[str, Any]], at: float
) -> None:
    assert found_between(stored, history, at=at) == []


# ---- card numbers ---------------------------------------------------------------------------------------------------

CARDS = ("4111111111111111", "4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6304000000000000")


@pytest.mark.parametrize("number", CARDS)
def test_a_card_number_is_refused_in_a_sentence(number: str) -> None:
    for refuse in (lambda: Payment(token=number), lambda: Charge(**OF, amount=TEN, token=number)):
        with pytest.raises(ValidationError, match="card number"):
            refuse()


@given(st.from_regex(r"[0-9]{12,18}", fullmatch=True), st.integers(0, 9))
def test_every_number_with_a_right_check_digit_looks_like_one_and_no_other(body: str, wrong: int) -> None:
    [right] = [digit for digit in "0123456789" if is_probable_card_number(body + digit)]
    assert str(wrong) == right or not is_probable_card_number(body + str(wrong))


@pytest.mark.parametrize("token", ["tok_approve", "4111111111111112", "411111111111", "tok_4111111111111111", "1" * 20])
def test_other_numbers_are_not_mistaken_for_card_numbers(token: str) -> None:
    assert not is_probable_card_number(token)
