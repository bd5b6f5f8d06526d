"""Access tokens: a valid one, and the attacks in the first rows of the security table."""

import base64
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from infrastructure.security.tokens import AUDIENCE, ISSUER, LEEWAY, TYPE, ExpiredToken, InvalidToken, issue, verify

SECRET = "a-secret-for-these-tests-that-is-long-enough"
OTHER = "another-secret-for-these-tests-long-enough"
NOW = datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC)
HOUR = timedelta(hours=1)


def token(**claims: Any) -> str:
    """Return a token like ours except for `claims`; `None` removes a claim."""
    good = issue(SECRET, user_id="u1", roles=["guest"], lifetime=HOUR, now=NOW)[0]
    body = {**jwt.decode(good, options={"verify_signature": False}), **claims}
    return sign({name: value for name, value in body.items() if value is not None})


def sign(claims: dict[str, Any], secret: str = SECRET, **header: Any) -> str:
    ours = jwt.get_unverified_header(issue(SECRET, user_id="u", roles=[], lifetime=HOUR, now=NOW)[0])
    return jwt.encode(claims, secret, algorithm="HS256", headers={**ours, **header})


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def claims_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(text, options={"verify_signature": False})
    return found


def test_a_token_has_a_user_id_roles_and_an_expiry_time() -> None:
    text, expires_at = issue(SECRET, user_id="u1", roles={"admin", "guest"}, lifetime=HOUR, now=NOW)
    identity = verify(SECRET, text, now=NOW)
    assert (identity.user_id, identity.roles) == ("u1", frozenset({"admin", "guest"}))
    assert identity.expires_at == expires_at == NOW + HOUR


def test_two_tokens_are_never_equal() -> None:
    first, second = (issue(SECRET, user_id="u1", roles=[], lifetime=HOUR, now=NOW)[0] for _ in range(2))
    assert verify(SECRET, first, now=NOW).token_id != verify(SECRET, second, now=NOW).token_id


def test_8_the_previous_secret_is_valid_until_it_is_removed() -> None:
    old = issue(OTHER, user_id="u1", roles=[], lifetime=HOUR, now=NOW)[0]
    assert verify(SECRET, old, now=NOW, previous=OTHER).user_id == "u1"
    assert verify(SECRET, token(), now=NOW, previous=OTHER).user_id == "u1"
    with pytest.raises(InvalidToken):
        verify(SECRET, old, now=NOW)
    with pytest.raises(ExpiredToken):
        verify(SECRET, old, now=NOW + HOUR + LEEWAY, previous=OTHER)
    # A token that names one key and is signed with the other.
    crossed = sign(claims_of(old), SECRET, kid=jwt.get_unverified_header(old)["kid"])
    with pytest.raises(InvalidToken):
        verify(SECRET, crossed, now=NOW, previous=OTHER)


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", "HS512", "RS256"])
def test_1_no_other_algorithm_and_none_at_all(algorithm: str) -> None:
    header = {**jwt.get_unverified_header(token()), "alg": algorithm}
    with pytest.raises(InvalidToken):
        verify(SECRET, forged(header, claims_of(token())), now=NOW)


def test_2_a_signature_with_another_key() -> None:
    with pytest.raises(InvalidToken):
        verify(SECRET, sign(claims_of(token()), OTHER), now=NOW)
    with pytest.raises(InvalidToken):
        verify(OTHER, token(), now=NOW)


def test_3_expired_after_the_leeway_and_not_before() -> None:
    end = NOW + HOUR + LEEWAY
    assert verify(SECRET, token(), now=end - timedelta(seconds=1)).user_id == "u1"
    with pytest.raises(ExpiredToken):
        verify(SECRET, token(), now=end)


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_3_from_the_future(claim: str) -> None:
    start = int(NOW.timestamp())
    assert verify(SECRET, token(**{claim: start + 30}), now=NOW).user_id == "u1"
    with pytest.raises(InvalidToken):
        verify(SECRET, token(**{claim: start + 31}), now=NOW)


@pytest.mark.parametrize("claim", ["exp", "iat", "aud", "iss", "sub", "jti"])
def test_4_a_claim_is_missing(claim: str) -> None:
    with pytest.raises(InvalidToken):
        verify(SECRET, token(**{claim: None}), now=NOW)


@pytest.mark.parametrize(("claim", "value"), [("aud", "other"), ("aud", [AUDIENCE + "x"]), ("iss", "other")])
def test_5_for_another_audience_or_by_another_issuer(claim: str, value: object) -> None:
    assert claims_of(token())["aud"] == AUDIENCE
    assert claims_of(token())["iss"] == ISSUER
    with pytest.raises(InvalidToken):
        verify(SECRET, token(**{claim: value}), now=NOW)


@pytest.mark.parametrize("kind", ["JWT", "refresh+jwt", "", None])
def test_5_a_token_for_another_purpose(kind: str | None) -> None:
    assert jwt.get_unverified_header(token())["typ"] == TYPE
    with pytest.raises(InvalidToken):
        verify(SECRET, sign(claims_of(token()), typ=kind), now=NOW)


@pytest.mark.parametrize("name", ["0", "../../etc/passwd", "' OR 1=1 --", "x" * 2000])
def test_6_a_header_with_another_key(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidToken):
        verify(SECRET, sign(claims_of(token()), kid=name), now=NOW)
    assert not caplog.records


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c", "crit"])
def test_7_a_header_with_an_address_of_a_key(name: str) -> None:
    with pytest.raises(InvalidToken):
        verify(SECRET, sign(claims_of(token()), SECRET, **{name: "http://127.0.0.1:9/key"}), now=NOW)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b.c", "x" * 5000, "é.é.é", token()[:-2], token() + "A", token().replace(".", "..", 1)],
)
def test_a_text_that_is_not_a_token(text: str) -> None:
    with pytest.raises(InvalidToken):
        verify(SECRET, text, now=NOW)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ""},
        {"sub": "x" * 65},
        {"sub": "a\nb"},
        {"sub": "é"},
        {"roles": "admin"},
        {"roles": [1]},
        {"exp": "soon"},
        {"exp": True},
        {"exp": 1e30},
        {"iat": 1.5},
        {"exp": 2**60},
    ],
)
def test_claims_of_another_shape(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        verify(SECRET, token(**claims), now=NOW)
