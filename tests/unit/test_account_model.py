"""The rules of accounts: values, changes of accounts, sessions and refresh tokens."""

import dataclasses
import string
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_service import model
from account_service.common_passwords import common_passwords
from account_service.model import (
    MAX_PASSWORD_BYTES,
    SESSION_IDLE,
    SESSION_LIFETIME,
    Account,
    Email,
    InvalidValueError,
    Password,
    Rotated,
    Session,
    decode_refresh_token,
    encode_refresh_token,
    refresh,
    surplus_sessions,
)
from contracts.accounts import MAX_SESSIONS, ROLES, Deleted, Disabled, Enabled, Registered, RolesChanged, Updated

NOW = datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC)
ACCOUNT = Account("u1", "ann@example.org", "Ann", {}, ("shopper",), NOW, password_hash="h1")
SESSION = Session("s1", "u1", NOW, NOW)
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def full_width(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


# ---- e-mail addresses ------------------------------------------------------------------------------------------------


def test_two_spellings_of_an_address_are_one_account_and_mail_goes_to_the_one_that_was_given() -> None:
    one, other = Email.parse("Ann.Bee@Example.ORG"), Email.parse("ann.bee@example.org")
    assert one.text == "Ann.Bee@example.org"
    assert one.key == other.key


@pytest.mark.parametrize("text", ["", "ann", "ann@localhost", "ann@[127.0.0.1]", "a@b.example\r\nBcc: c@d.example"])
def test_an_address_to_which_no_mail_can_be_sent_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError):
        Email.parse(text)


# ---- passwords -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "at least 8"),
        ("1234567", "at least 8"),
        ("x" * 1025, "at most 1024"),
        ("é" * 513, "at most 1024"),
        ("x" * 10_000_000, "at most 1024"),
        ("ﷺ" * 1024, "at most 1024"),  # eighteen times as long after NFKC
        ("\ud800" * 10, "at most 1024"),
        ("password1", "most common"),
        ("PassWord1", "most common"),
        (full_width("password1"), "most common"),
    ],
)
def test_a_password_that_is_too_short_too_long_or_too_common_is_refused_without_being_repeated(
    text: str, reason: str
) -> None:
    with pytest.raises(InvalidValueError, match=reason) as refused:
        Password.parse(text, common_passwords())
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("text", ["éééé", "correct horse", " " * 8, "x" * 1024, "é" * 512])
def test_no_rule_asks_for_kinds_of_characters(text: str) -> None:
    assert Password.parse(text, common_passwords()).normalized == text.encode()


def test_the_same_password_typed_on_another_keyboard_is_the_same() -> None:
    assert Password.parse("cafe\u0301 au lait") == Password.parse("caf\u00e9 au lait")
    assert Password.entered(full_width("pass")) == Password.entered("pass")


def test_a_password_is_never_shown() -> None:
    assert "secret" not in repr(Password.parse("my secret secret")) + str(Password.parse("my secret secret"))


@given(st.text(max_size=2000))
def test_a_chosen_password_can_be_entered(text: str) -> None:
    try:
        chosen = Password.parse(text, common_passwords())
    except InvalidValueError:
        return
    assert 8 <= len(chosen.normalized) <= MAX_PASSWORD_BYTES
    assert Password.entered(text) == chosen
    assert Password.entered(chosen.normalized.decode()) == chosen


# ---- names, profiles and roles ---------------------------------------------------------------------------------------


def test_a_name_loses_the_blanks_around_it() -> None:
    assert model.parse_name("  Ann Bee ") == "Ann Bee"


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[0mb", "x" * 201, "a\u202eb"])
def test_a_name_that_cannot_be_printed_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError):
        model.parse_name(text)


@pytest.mark.parametrize(("size", "accepted"), [(16 * 1024, True), (16 * 1024 + 1, False)])
def test_a_profile_has_a_size_limit(size: int, accepted: bool) -> None:
    profile = {"x": "y" * (size - len('{"x":""}'))}
    if accepted:
        model.check_profile(profile)
    else:
        with pytest.raises(InvalidValueError):
            model.check_profile(profile)


def test_a_profile_with_a_number_that_json_libraries_do_not_share_is_refused() -> None:
    with pytest.raises(InvalidValueError):
        model.check_profile({"x": 2**70})


def test_roles_are_ordered_without_repeats() -> None:
    assert model.parse_roles(["admin", "shopper", "admin"]) == ("shopper", "admin")


@pytest.mark.parametrize("roles", [[], ["root"], ["guest"], ["shopper", "Admin"]])
def test_unknown_roles_are_refused(roles: list[str]) -> None:
    with pytest.raises(InvalidValueError):
        model.parse_roles(roles)


# ---- changes of accounts ---------------------------------------------------------------------------------------------


def test_each_change_raises_the_version_and_has_its_event() -> None:
    assert model.register(ACCOUNT).event == Registered(user_id="u1", version=1, roles=("shopper",))
    for change, event in [
        (model.update_profile(ACCOUNT, name="Bee"), Updated(user_id="u1", version=2, fields=("name",))),
        (model.change_password(ACCOUNT, "h2"), Updated(user_id="u1", version=2, fields=("password",))),
        (model.set_roles(ACCOUNT, ("admin",)), RolesChanged(user_id="u1", version=2, roles=("admin",))),
        (model.set_disabled(ACCOUNT, disabled=True), Disabled(user_id="u1", version=2)),
        (model.delete(ACCOUNT), Deleted(user_id="u1", version=2)),
    ]:
        assert change.event == event
        assert change.account.version == 2
    disabled = model.set_disabled(ACCOUNT, disabled=True).account
    assert model.set_disabled(disabled, disabled=False).event == Enabled(user_id="u1", version=3)


def test_a_change_to_what_is_there_already_is_none() -> None:
    for change in (
        model.update_profile(ACCOUNT, name="Ann", profile={}),
        model.update_profile(ACCOUNT),
        model.set_roles(ACCOUNT, ("shopper",)),
        model.set_disabled(ACCOUNT, disabled=False),
        model.confirm_email(dataclasses.replace(ACCOUNT, confirmed=True), "h2"),
    ):
        assert (change.account.version, change.event) == (1, None)


def test_no_event_has_an_address_a_name_or_a_password() -> None:
    account = dataclasses.replace(ACCOUNT, name="Ann Bee", password_hash="$argon2id$", email="ann@example.org")
    changes = [
        model.register(account),
        model.update_profile(account, name="Beatrice", profile={"street": "Main"}),
        model.confirm_email(account, "$argon2id$2"),
        model.change_password(account, "$argon2id$3"),
        model.delete(account),
    ]
    text = " ".join(str(change.event) for change in changes)
    assert not [word for word in ("ann", "Ann", "Beatrice", "Main", "argon2") if word in text]


def test_the_confirmed_registration_decides_about_the_password() -> None:
    confirmed = model.confirm_email(ACCOUNT, "of the registration").account
    assert (confirmed.confirmed, confirmed.password_hash) == (True, "of the registration")
    assert model.confirm_email(confirmed, "of another one").account == confirmed


def test_a_reset_by_mail_confirms_the_address_too() -> None:
    assert model.change_password(ACCOUNT, "h2", proves_address=True).account.confirmed
    assert not model.change_password(ACCOUNT, "h2").account.confirmed


def test_who_cannot_log_in_although_the_password_is_right() -> None:
    assert model.login_refusal(ACCOUNT, requires_confirmation=False) is None
    assert model.login_refusal(ACCOUNT, requires_confirmation=True) == "unconfirmed"
    disabled = dataclasses.replace(ACCOUNT, disabled=True, confirmed=True)
    assert model.login_refusal(disabled, requires_confirmation=True) == "disabled"


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_ends_when_it_is_not_used_and_at_the_latest_at_its_age() -> None:
    assert not SESSION.has_ended(NOW + SESSION_IDLE - timedelta(seconds=1))
    assert SESSION.has_ended(NOW + SESSION_IDLE)
    busy = dataclasses.replace(SESSION, seen_at=NOW + SESSION_LIFETIME - timedelta(days=1))
    assert busy.expires_at == NOW + SESSION_LIFETIME


def test_the_newest_refresh_token_continues_the_session() -> None:
    later = NOW + timedelta(minutes=14)
    result = refresh(SESSION, ACCOUNT, 0, later)
    assert result == Rotated(Session("s1", "u1", NOW, later, generation=1))


@given(st.integers(0, 50), st.integers(0, 50))
def test_any_other_genuine_refresh_token_is_a_reuse(current: int, presented: int) -> None:
    session = dataclasses.replace(SESSION, generation=current)
    assert (refresh(session, ACCOUNT, presented, NOW) == "reused") == (presented != current)


@pytest.mark.parametrize(
    ("session", "account"),
    [
        (None, ACCOUNT),
        (SESSION, None),
        (SESSION, dataclasses.replace(ACCOUNT, disabled=True)),
        (dataclasses.replace(SESSION, ended_at=NOW), ACCOUNT),
        (dataclasses.replace(SESSION, seen_at=NOW - SESSION_IDLE), ACCOUNT),
    ],
)
def test_an_ended_session_is_not_refreshed(session: Session | None, account: Account | None) -> None:
    assert refresh(session, account, 0, NOW) == "refused"
    assert refresh(session, account, 7, NOW) == "refused"


@given(st.integers(0, MAX_SESSIONS + 20), st.integers(0, 5))
def test_one_more_login_never_exceeds_the_number_of_sessions_and_ends_the_idlest(count: int, ended: int) -> None:
    sessions = [
        Session(str(number), "u1", NOW, NOW + timedelta(seconds=number), ended_at=NOW if number < ended else None)
        for number in range(count)
    ]
    surplus = set(surplus_sessions(sessions, NOW + timedelta(hours=1)))
    left = [each for each in sessions if each.ended_at is None and each.session_id not in surplus]
    assert len(left) <= MAX_SESSIONS - 1
    assert len(left) == MAX_SESSIONS - 1 or not surplus
    gone = [each.seen_at for each in sessions if each.session_id in surplus]
    assert all(at <= kept.seen_at for at in gone for kept in left)


# ---- refresh tokens --------------------------------------------------------------------------------------------------

IDS = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=64)


@given(IDS, st.integers(0, 10**8))
def test_a_refresh_token_is_read_back_with_any_of_the_keys(session_id: str, generation: int) -> None:
    token = encode_refresh_token(KEY, session_id, generation)
    assert decode_refresh_token([KEY], token) == (session_id, generation)
    assert decode_refresh_token([OTHER_KEY, KEY], token) == (session_id, generation)
    assert decode_refresh_token([OTHER_KEY], token) is None


@given(IDS, st.integers(0, 10**8), st.data())
def test_a_refresh_token_with_one_other_character_is_no_token(
    session_id: str, generation: int, data: st.DataObject
) -> None:
    token = encode_refresh_token(KEY, session_id, generation)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_."))
    changed = token[:place] + other + token[place + 1 :]
    assert changed == token or decode_refresh_token([KEY], changed) is None


@pytest.mark.parametrize(
    "token", ["", ".", "..", "s1", "s1.0", "s1.0.", "s1.-1.x", f"s1.{full_width('1')}.x", "é.0.x", "." * 9, "s" * 99999]
)
def test_any_other_text_is_no_refresh_token(token: str) -> None:
    assert decode_refresh_token([KEY], token) is None


@given(st.text(max_size=200))
def test_no_text_raises(text: str) -> None:
    assert decode_refresh_token([KEY], text) is None


def test_a_number_is_written_in_one_way_only() -> None:
    token = encode_refresh_token(KEY, "s1", 1)
    assert decode_refresh_token([KEY], token.replace(".1.", ".01.")) is None


# ---- one-time tokens -------------------------------------------------------------------------------------------------


def test_the_digest_of_a_token_is_of_fixed_size_and_not_the_plain_one() -> None:
    assert len(model.token_digest("x" * 1000)) == 32
    assert model.token_digest("a") != model.token_digest("b")
    assert model.token_digest("\ud800")


def test_the_roles_of_the_contract() -> None:
    assert set(ROLES) == {"shopper", "support", "admin", "service"}


def fields_of(value: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(value)}


def test_a_session_holds_no_token() -> None:
    assert fields_of(SESSION) == {"session_id", "user_id", "created_at", "seen_at", "generation", "ended_at"}
