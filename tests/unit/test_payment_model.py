"""The rules of payment: by cases, and by thousands of bad days with the provider's own books."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from inventory_service.messages import Money
from order_service.messages import Payment, looks_like_a_card_number
from order_service.payment.audit import differences
from order_service.payment.messages import Captured, Charge, Declined, Notified, Query, Refund, Refunded, Void, Voided
from order_service.payment.model import (
    Answer,
    Ask,
    Create,
    GiveBack,
    NoAnswer,
    NotThere,
    Outcome,
    Read,
    Refusal,
    Step,
    Tombstone,
    accept,
    ask_after,
    conclude,
    event_of,
    is_asked_for,
    next_ask,
)
from order_service.payment.provider.books import Books, Conflict, Wanted

OF = {"order_id": "o-1", "user_id": "ann", "payment_id": "p-1"}
TEN = Money(amount=1000, currency="GBP")
NEW = Step(key="p-1", order_id="o-1", user_id="ann", payment_id="p-1", wish="query")
CHARGE = Charge(**OF, amount=TEN, token="tok_approve")
CHARGED = accept(NEW, CHARGE).step
VOIDED = accept(CHARGED, Void(**OF)).step
BACK = replace(NEW, key="r-1", wish="refund", amount=TEN)


def test_a_charge_is_sent_once_and_then_asked_about() -> None:
    assert next_ask(CHARGED, 1) == Create(TEN, "tok_approve")
    assert [next_ask(CHARGED, attempt) for attempt in (2, 3, 50)] == [Read()] * 3
    assert ask_after(CHARGED, Create(TEN, "tok_approve"), NoAnswer("late")) == Read()
    assert ask_after(CHARGED, Read(), NotThere()) == Create(TEN, "tok_approve"), "under the same key"
    assert ask_after(CHARGED, Read(), Outcome("pending")) is None


def test_once_a_void_is_wanted_nothing_is_charged_any_more() -> None:
    for first, second in ((CHARGE, Void(**OF)), (Void(**OF), CHARGE)):
        step = accept(accept(NEW, first).step, second).step
        assert step.wish == "void"
        assert {next_ask(step, attempt) for attempt in range(1, 9)} == {Tombstone()}
        assert ask_after(step, Tombstone(), NotThere()) is None


def test_what_is_settled_stays_so() -> None:
    taken = conclude(CHARGED, Read(), Outcome("captured", TEN))
    assert event_of(taken) == Captured(**OF, amount=TEN)
    for request in (CHARGE, Void(**OF), Query(**OF)):
        accepted = accept(taken, request)
        assert (accepted.step.state, accepted.ask, accepted.tell) == ("captured", False, True)
        assert next_ask(accepted.step, 1) is None
    assert accept(taken, Notified(**OF)).tell is False


def test_unknown_is_told_again_for_the_same_request_only() -> None:
    doubted = conclude(CHARGED, Create(TEN, "tok_approve"), NoAnswer("late"))
    assert accept(CHARGED, CHARGE).tell is False
    assert accept(doubted, CHARGE).tell is True
    assert accept(doubted, Void(**OF)).tell is False, "that is no answer to it"


def test_declined_is_what_a_void_asks_for() -> None:
    declined = conclude(CHARGED, Create(TEN, "tok_decline"), Outcome("declined", reason="no"))
    assert event_of(declined) == Declined(**OF, reason="no")
    assert event_of(accept(declined, Void(**OF)).step) == Voided(**OF)


def test_a_refusal_settles_a_charge_and_nothing_else() -> None:
    assert conclude(CHARGED, Create(TEN, "tok_x"), Refusal("no such token")).state == "declined"
    for step, ask in ((VOIDED, Tombstone()), (BACK, GiveBack(TEN)), (CHARGED, Read())):
        left = conclude(step, ask, Refusal("no"))
        assert (left.state, is_asked_for(left)) == ("open", True), "what is owed stays owed"


def test_money_is_given_back_under_its_own_key() -> None:
    asked = accept(replace(BACK, amount=None), Refund(**OF, refund_id="r-1", amount=TEN)).step
    assert next_ask(asked, 7) == GiveBack(TEN)
    given_back = conclude(asked, GiveBack(TEN), Outcome("refunded", TEN))
    assert event_of(given_back) == Refunded(**OF, refund_id="r-1", amount=TEN)


def test_a_question_is_answered_by_whatever_is_said() -> None:
    assert next_ask(NEW, 1) == Read()
    assert not is_asked_for(conclude(NEW, Read(), NotThere()))
    assert accept(conclude(NEW, Read(), NotThere()), CHARGE).step.wish == "charge"


# ---- bad days -------------------------------------------------------------------------------------------------------

REQUESTS = (CHARGE, CHARGE, Void(**OF), Query(**OF), Notified(**OF))
DAYS = st.lists(
    st.one_of(
        st.sampled_from(REQUESTS),
        st.sampled_from(["ask", "ask, unheard", "ask, unanswered", "time passes"]),
    ),
    max_size=25,
)


class Day:
    """One payment, one provider with its real books, and a line between them that loses questions and answers."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.books = Books(":memory:")
        self.step: Step | None = None
        self.attempt = 0

    def request(self, request: Charge | Void | Query | Notified) -> None:
        if isinstance(request, Charge):
            request = request.model_copy(update={"token": self.token})
        if self.step is not None or not isinstance(request, Notified):
            self.step = accept(self.step or NEW, request).step

    def ask(self, how: str = "ask") -> None:
        if self.step is None:
            return
        self.attempt += 1
        question = next_ask(self.step, self.attempt)
        while question is not None:
            answer = NoAnswer("lost") if how == "ask, unheard" else self.answered(question)
            if how == "ask, unanswered":
                answer = NoAnswer("lost")
            following = ask_after(self.step, question, answer)
            if following is None:
                before, self.step = self.step, conclude(self.step, question, answer)
                assert before.state in {"open", self.step.state}
            question = following

    def answered(self, question: Ask) -> Answer:
        match question:
            case Create(amount=amount, token=token):
                outcome = {"tok_approve": ("captured", amount.amount), "tok_decline": ("declined", None)}.get(token)
                try:
                    self.books.begin(Wanted("p-1", amount.amount, amount.currency, token), outcome)  # type: ignore[arg-type]
                except Conflict as conflict:
                    return Refusal(conflict.detail)
            case Tombstone():
                self.books.void("p-1")
            case Read():
                pass
            case GiveBack():
                raise AssertionError("nobody asked for money back")
        charge = self.books.charge("p-1")
        if charge is None:
            return NotThere()
        known = None if charge["amount"] is None else Money(amount=charge["amount"], currency=charge["currency"])
        return Outcome(charge["status"], known)

    def time_passes(self) -> None:
        if self.token == "tok_late" and self.books.charge("p-1"):
            self.books.decide("p-1", ("captured", 1000))


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(["tok_approve", "tok_decline", "tok_timeout", "tok_late"]), DAYS)
def test_whatever_is_lost_nothing_is_charged_twice_and_in_the_end_both_sides_agree(
    token: str, steps: list[Charge | Void | Query | Notified | str]
) -> None:
    day = Day(token)
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
    amount = day.step.settled.amount if day.step.settled else None
    assert [*differences({"p-1": (day.step.state, amount)}, history)] == []
    told = event_of(day.step)
    assert isinstance(told, Captured if day.step.state == "captured" else Voided)
    day.books.close()


def test_the_audit_sees_a_difference() -> None:
    def entry(type_: str, amount: int | None, key: str = "a", order: str = "o") -> dict[str, object]:
        return {"key": key, "charge": key, "type": type_, "amount": amount, "order_id": order}

    ours = {"a": ("voided", None)}
    assert len([*differences(ours, [entry("captured", 10)])]) == 1
    assert len([*differences({"a": ("captured", 9)}, [entry("captured", 10)])]) == 1
    assert len([*differences(ours, [entry("voided", None), entry("captured", 10)])]) == 1
    assert len([*differences({}, [entry("captured", 1, "a"), entry("captured", 1, "b")])]) == 1, "two of one order"
    assert [*differences(ours, [entry("voided", None), entry("captured", 1, "not ours", "p")])] == []


# ---- card numbers ---------------------------------------------------------------------------------------------------

CARDS = ("4111111111111111", "4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6304000000000000")


@pytest.mark.parametrize("number", CARDS)
def test_a_card_number_is_refused_in_a_sentence(number: str) -> None:
    for refuse in (lambda: Payment(token=number), lambda: Charge(**OF, amount=TEN, token=number)):
        with pytest.raises(ValidationError, match="card number"):
            refuse()


@given(st.from_regex(r"[0-9]{12,18}", fullmatch=True), st.integers(0, 9))
def test_every_number_with_a_right_check_digit_looks_like_one_and_no_other(body: str, wrong: int) -> None:
    [right] = [digit for digit in "0123456789" if looks_like_a_card_number(body + digit)]
    assert str(wrong) == right or not looks_like_a_card_number(body + str(wrong))


@pytest.mark.parametrize("token", ["tok_approve", "4111111111111112", "411111111111", "tok_4111111111111111", "1" * 20])
def test_what_is_no_card_number_is_not_taken_for_one(token: str) -> None:
    assert not looks_like_a_card_number(token)
