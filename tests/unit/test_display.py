"""Texts for shoppers: product names and money."""

import re
from pathlib import Path
from typing import get_args

import pytest

import rest_api
from contracts import orders
from contracts.cart import Refused
from contracts.currencies import decimals
from contracts.display import display_name, format_money
from contracts.inventory import Money, RefusalReason
from rest_api.http.commands.orders import refusal_problem


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("MINI FUNKY DESIGN TAPES", "Mini funky design tapes"),
        ("6 RIBBONS RUSTIC CHARM", "6 ribbons rustic charm"),
        ("EDWARDIAN PARASOL BLACK", "Edwardian parasol black"),
        ("SET/20 RED RETROSPOT PAPER NAPKINS ", "Set/20 red retrospot paper napkins "),
        ("Pen, 10 colours", "Pen, 10 colours"),
        ("iPod holder", "iPod holder"),
        ("CAFÉ CRÈME", "Café crème"),
        ("ΣΊΣΥΦΟΣ", "Σίσυφος"),
        ("10125", "10125"),
        ("हिन्दी किताब", "हिन्दी किताब"),
        ("", ""),
    ],
)
def test_a_name_in_capitals_is_shown_in_sentence_case(name: str, shown: str) -> None:
    assert display_name(name) == shown


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (85, "GBP", "£0.85"),
        (849, "GBP", "£8.49"),
        (125000, "GBP", "£1,250.00"),
        (5, "EUR", "€0.05"),
        (1999, "USD", "$19.99"),
        (849, "JPY", "¥849"),
        (1500000, "JPY", "¥1,500,000"),
        (1234, "KWD", "1.234 KWD"),
        (849, "CHF", "8.49 CHF"),
        (1500, "KRW", "1,500 KRW"),
        (12345, "CLF", "1.2345 CLF"),
        (-849, "GBP", "-£8.49"),
        (-849, "CHF", "-8.49 CHF"),
        (0, "GBP", "£0.00"),
    ],
)
def test_money_has_its_sign_and_its_decimals(amount: int, currency: str, text: str) -> None:
    assert format_money(Money(amount=amount, currency=currency)) == text


@pytest.mark.parametrize(("currency", "digits"), [("GBP", 2), ("JPY", 0), ("KWD", 3), ("UYW", 4), ("XYZ", 2)])
def test_minor_units_are_those_of_iso_4217(currency: str, digits: int) -> None:
    assert decimals(currency) == digits


# ---- the page's words -----------------------------------------------------------------------------------------------

FORMAT = (Path(rest_api.__file__).parent / "pages" / "format.js").read_text(encoding="utf-8")


def words_for(function: str) -> set[str]:
    """Return the values for which a function of the page has words of its own."""
    [body] = re.findall(rf"^(?:export )?function {function}\b.*?^}}$", FORMAT, re.DOTALL | re.MULTILINE)
    return set(re.findall(r'case "([a-z_-]+)":', body))


def test_the_page_has_words_for_every_end_of_an_order() -> None:
    assert words_for("cancellationText") == {*get_args(orders.CancelReason)} - {"failed"}


def test_the_page_has_words_for_every_refusal() -> None:
    of_a_change = {*get_args(RefusalReason)} - {"cart_changed", "cart_empty", "total_changed", "payment_unavailable"}
    assert words_for("refusalText") == of_a_change
    of_an_order = {refusal_problem(Refused(user_id="u", id="r", reason=each)).slug for each in get_args(RefusalReason)}
    assert words_for("orderErrorText") >= of_an_order - {"unavailable"}
