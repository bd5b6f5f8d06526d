"""E-mail addresses and telephone numbers from clients."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts import orders
from contracts.addresses import envelope_email, parse_email, parse_phone
from rest_api.protocol.client_frames import Wanted
from tests.testkit.rest_client import wanted

REFUSED = [
    "john.@example.org",
    ".john@example.org",
    "try..this@example.org",
    "ann@example.org.",
    "ann@example..org",
    "ann@.example.org",
    "ann;bob@example.org",
    "<ann@example.org",
    "<ann@example.org>",
    "Ann <ann@example.org>",
    "a,b@x",
    "a,b@example.org",
    "x@y>",
    "x@y>.org",
    "|x@y",
    "?=@[=?utf",
    "=?utf-8?q?a=0d=0a?=@example.org",
    "ann@exa\u200bmple.org",
    "an\u200bn@example.org",
    "jürgen@example.org",
    "ann@[127.0.0.1]",
    "ann@[IPv6:::1]",
    "ann@127.0.0.1",
    "ann@localhost",
    "ann@example",
    "ann@-example.org",
    "ann@exam_ple.org",
    "ann",
    "@example.org",
    "ann@",
    "@",
    "",
    " ann@example.org",
    "ann@example.org ",
    "ann @example.org",
    "ann@example.org\n",
    "ann@example.org\r\nBcc: bob@example.org",
    "ann\0@example.org",
    "ann@example.org,bob@example.org",
    "ann@bob@example.org",
    'ann"b@example.org',
    '"ann@example.org',
    '"a\r\nb"@example.org',
    "ann@ex\u202eample.org",
    f"{'a' * 65}@example.org",
    f"ann@{'b' * 64}.org",
    f"{'a' * 60}@{'b' * 60}.{'c' * 60}.{'d' * 60}.{'e' * 60}.org",
    "a" * 10_000,
]
ACCEPTED = [
    ("ann@example.org", "ann@example.org", "ann@example.org"),
    ("Ann@EXAMPLE.org", "Ann@example.org", "Ann@example.org"),
    ("ann+shop@example.org", "ann+shop@example.org", "ann+shop@example.org"),
    ("o'neil@example.org", "o'neil@example.org", "o'neil@example.org"),
    ("|x@example.org", "|x@example.org", "|x@example.org"),
    ("ann@bücher.example", "ann@bücher.example", "ann@xn--bcher-kva.example"),
    ("ann@BÜCHER.example", "ann@bücher.example", "ann@xn--bcher-kva.example"),
    ("ann@xn--bcher-kva.example", "ann@bücher.example", "ann@xn--bcher-kva.example"),
    ("ann@例え.example", "ann@例え.example", "ann@xn--r8jz45g.example"),
    ("ann@\uff45xample.org", "ann@example.org", "ann@example.org"),
    ('"ann"@example.org', "ann@example.org", "ann@example.org"),
    ('"a b"@example.org', '"a b"@example.org', '"a b"@example.org'),
    ('"a@b"@example.org', '"a@b"@example.org', '"a@b"@example.org'),
    ('"a,b"@example.org', '"a,b"@example.org', '"a,b"@example.org'),
    ('"john."@example.org', '"john."@example.org', '"john."@example.org'),
    ("ann@shop.test", "ann@shop.test", "ann@shop.test"),
]


@pytest.mark.parametrize("text", REFUSED)
def test_an_address_that_no_mail_can_have_is_refused_with_an_example(text: str) -> None:
    for parse in (parse_email, envelope_email):
        with pytest.raises(ValueError, match=r"ann@example\.org"):
            parse(text)


@pytest.mark.parametrize(("text", "shown", "sent_to"), ACCEPTED)
def test_an_address_is_shown_in_its_own_script_and_sent_to_in_ascii(text: str, shown: str, sent_to: str) -> None:
    assert (parse_email(text), envelope_email(text)) == (shown, sent_to)
    assert parse_email(shown) == shown, "the normal form is its own normal form"


@given(st.text(max_size=40), st.text(max_size=20))
def test_any_text_is_an_address_or_a_value_error(local: str, domain: str) -> None:
    text = f"{local}@{domain}.org"
    try:
        address = parse_email(text)
    except ValueError:
        return
    sent_to = envelope_email(address)
    assert sent_to.isascii()
    assert sent_to.isprintable()
    assert not re.search(r"[\r\n\0<>]", sent_to.rpartition("@")[2])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+44 20 7946 0123", "+442079460123"),
        ("+44 (0)20 7946-0123", "+442079460123"),
        ("0044 20 7946 0123", "+442079460123"),
        ("+49.30/123456", "+4930123456"),
        ("+1 (212) 555-0100", "+12125550100"),
    ],
)
def test_a_number_is_kept_in_e164(text: str, number: str) -> None:
    assert parse_phone(text) == number
    assert parse_phone(number) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "112",
        "0113 496 0999",
        "+0123456789",
        "+44",
        "+" + "1" * 16,
        "call me",
        "+٤٤٢٠٧٩٤٦٠١٢٣",
        "+44 20 7946 0123;1",
        "+44 20 7946 0123\n",
        "++442079460123",
        "+44 20 7946 012x",
        "tel:+442079460123",
        "+ " + "1 " * 40,
    ],
)
def test_a_number_without_its_country_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"\+44 20 7946 0123"):
        parse_phone(text)


def test_an_order_has_a_parsed_contact() -> None:
    given_contact = {"email": "Ann@BÜCHER.example", "phone": "+44 20 7946 0123"}
    order = Wanted.model_validate(wanted(version=1, items=None, contact=given_contact))
    assert order.command()["contact"] == {"email": "Ann@bücher.example", "phone": "+442079460123"}
    for contact in ({"email": "a,b@x"}, {"email": "ann@example.org", "phone": "112"}):
        with pytest.raises(ValidationError):
            Wanted.model_validate(wanted(version=1, items=None, contact=contact))


OLD: list[dict[str, Any]] = [
    {"email": "a,b@x.y"},
    {"email": "john.@example.org", "phone": "0113 496 0999"},
    {"email": "ann@bücher.example"},
    {"email": "ann\u200b@example.org"},
    {"email": "x@y>.org"},
    {"email": '"a b"@example.org'},
]


@pytest.mark.parametrize("contact", OLD)
def test_contacts_of_earlier_versions_stay_readable(contact: dict[str, Any]) -> None:
    assert orders.Contact.model_validate(contact).model_dump(exclude_none=True) == contact
