"""Limits by recipient, without a server: which spellings count together, and which limit forbids a notice."""

import pytest

from notification_service.recipients import RecipientLimits, email_recipient, sms_recipient
from notification_service.settings import Settings

LIMITS = RecipientLimits(hour=2, day=5, service_hour=1, service_day=3, total_hour=10)


@pytest.mark.parametrize(
    "spelling",
    [
        "ann.b@mail.example",
        "annb@mail.example",
        "Ann.B@mail.example",
        "a.n.n.b+shop@mail.example",
        "annb+@mail.example",
    ],
)
def test_spellings_of_one_mailbox_count_together(spelling: str) -> None:
    assert email_recipient(spelling) == "annb@mail.example"


@pytest.mark.parametrize("other", ["ann@mail.example", "annb@other.example", "annb@mail.example.org", "+@mail.example"])
def test_other_mailboxes_count_apart(other: str) -> None:
    assert email_recipient(other) != "annb@mail.example"


@pytest.mark.parametrize("spelling", ["+442079460123", "+44 20 7946 0123", "0044 20 7946-0123"])
def test_spellings_of_one_number_count_together(spelling: str) -> None:
    assert sms_recipient(spelling) == "442079460123"


@pytest.mark.parametrize(
    ("by_service", "hour", "day", "total", "refusal"),
    [
        (False, 0, 0, 0, None),
        (False, 1, 4, 9, None),
        (False, 2, 2, 2, "recipient"),
        (False, 0, 5, 5, "recipient"),
        (False, 0, 0, 10, "total"),
        (False, 2, 2, 10, "recipient"),
        (True, 0, 2, 9, None),
        (True, 1, 1, 1, "recipient"),
        (True, 0, 3, 3, "recipient"),
        (True, 0, 0, 10, "total"),
    ],
)
def test_which_limit_forbids_a_notice(by_service: bool, hour: int, day: int, total: int, refusal: str | None) -> None:
    assert LIMITS.refusal(by_service=by_service, hour=hour, day=day, total=total) == refusal


def test_the_total_limit_can_be_off() -> None:
    limits = RecipientLimits.of(Settings(email_limit_total_hour=0), "email")
    assert limits.refusal(by_service=False, hour=0, day=0, total=10**9) is None
