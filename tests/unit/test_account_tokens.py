"""Access tokens of accounts and their keys: the attacks of the security table, and the sealing of private keys."""

import base64
import dataclasses
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from account_service.keys import RETIREMENT_MARGIN, retired
from account_service.store import SigningKeyRow
from infrastructure.security.key_set import decode_key_set, encode_key_set
from infrastructure.security.sealing import UnsealableError, derive_key, seal, unseal
from infrastructure.security.tokens import (
    LEEWAY,
    TYPE,
    ExpiredToken,
    InvalidToken,
    account_key_id,
    issue,
    issue_for_account,
    verify,
    verify_for_account,
)

NOW = datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
KEYS = {"k1": KEY.public_key(), "k2": OTHER.public_key()}
SECRET = "a-secret-for-these-tests-that-is-long-enough"
OURS = {"alg": "EdDSA", "typ": TYPE, "kid": "k1"}


def good(key: Ed25519PrivateKey = KEY, kid: str = "k1", now: datetime = NOW) -> str:
    return issue_for_account(
        key,
        kid,
        user_id="u1",
        roles=("shopper", "admin"),
        session_id="s1",
        account_version=3,
        lifetime=QUARTER,
        now=now,
        auth_time=now - timedelta(days=1),
    )[0]


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def token(header: dict[str, Any] | None = None, key: Ed25519PrivateKey = KEY, **claims: Any) -> str:
    """Return a token like ours except for parts of its header and its claims; `None` removes a claim."""
    body = {name: value for name, value in {**claims_of(good()), **claims}.items() if value is not None}
    return jwt.encode(body, key, algorithm="EdDSA", headers={**OURS, **(header or {})})


def forged(header: dict[str, Any]) -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims_of(good())).encode(), b""]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def test_a_token_says_whose_it_is_and_of_which_session() -> None:
    identity = verify_for_account(KEYS, good(), now=NOW)
    assert (identity.user_id, identity.roles) == ("u1", frozenset({"shopper", "admin"}))
    assert (identity.session_id, identity.account_version) == ("s1", 3)
    assert identity.expires_at == NOW + QUARTER
    assert identity.auth_time == NOW - timedelta(days=1)
    assert account_key_id(good()) == "k1"


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", "HS256", "RS256", "ES256"])
def test_1_no_other_algorithm_and_none_at_all(algorithm: str) -> None:
    text = forged({**OURS, "alg": algorithm})
    assert account_key_id(text) is None
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, text, now=NOW)


def test_2_the_public_key_is_no_secret_to_sign_with() -> None:
    public = KEY.public_key()
    for secret in (
        public.public_bytes_raw(),
        base64.urlsafe_b64encode(public.public_bytes_raw()),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    ):
        for header in (OURS, {**OURS, "alg": "HS256"}):
            head, body, _ = forged(header).split(".")
            mac = jwt.get_algorithm_by_name("HS256").sign(f"{head}.{body}".encode(), secret)
            text = f"{head}.{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
            with pytest.raises(InvalidToken):
                verify_for_account(KEYS, text, now=NOW)
            with pytest.raises(InvalidToken):
                verify(SECRET, text, now=NOW)


def test_2_one_key_does_not_sign_for_another() -> None:
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, token(key=OTHER), now=NOW)
    assert verify_for_account(KEYS, good(OTHER, "k2"), now=NOW).user_id == "u1"


def test_the_shops_secret_makes_no_token_of_an_account() -> None:
    guest = issue(SECRET, user_id="u1", roles=["guest"], lifetime=QUARTER, now=NOW)[0]
    assert account_key_id(guest) is None
    claims = {**claims_of(guest), "sid": "s1", "ver": 3}
    with_session = jwt.encode(claims, SECRET, algorithm="HS256", headers=jwt.get_unverified_header(guest))
    assert verify(SECRET, with_session, now=NOW).session_id is None


def test_3_expired_after_the_leeway_and_not_before() -> None:
    end = NOW + QUARTER + LEEWAY
    assert verify_for_account(KEYS, good(), now=end - timedelta(seconds=1)).user_id == "u1"
    with pytest.raises(ExpiredToken):
        verify_for_account(KEYS, good(), now=end)


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_3_from_the_future(claim: str) -> None:
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, token(None, KEY, **{claim: int(NOW.timestamp()) + 31}), now=NOW)


@pytest.mark.parametrize("claim", ["exp", "iat", "aud", "iss", "sub", "jti", "sid", "ver"])
def test_4_a_claim_is_missing(claim: str) -> None:
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, token(None, KEY, **{claim: None}), now=NOW)


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("aud", "other"),
        ("iss", "other"),
        ("sid", 1),
        ("sid", ""),
        ("sid", "x" * 65),
        ("ver", "3"),
        ("ver", 0),
        ("ver", 1.5),
        ("ver", True),
        ("ver", 2**63),
    ],
)
def test_5_a_claim_is_not_ours(claim: str, value: object) -> None:
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, token(None, KEY, **{claim: value}), now=NOW)


@pytest.mark.parametrize("kind", ["JWT", "refresh+jwt", ""])
def test_5_a_token_for_another_purpose(kind: str) -> None:
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, token({"typ": kind}), now=NOW)


@pytest.mark.parametrize("kid", ["k3", "../../etc/passwd", "' OR 1=1 --", "x" * 2000, "", "é"])
def test_6_an_unknown_key_is_refused_silently(kid: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, token({"kid": kid}), now=NOW)
    assert not caplog.records


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c", "crit"])
def test_7_a_header_with_an_address_of_a_key(name: str) -> None:
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, token({name: "http://127.0.0.1:9/key"}), now=NOW)


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "x" * 5000, "é.é.é", good()[:-2], good() + "A"])
def test_a_text_that_is_not_a_token(text: str) -> None:
    with pytest.raises(InvalidToken):
        verify_for_account(KEYS, text, now=NOW)


# ---- key sets --------------------------------------------------------------------------------------------------------


def test_a_key_set_is_read_back_and_has_no_private_part() -> None:
    document = encode_key_set(KEYS)
    assert {name: key.public_bytes_raw() for name, key in decode_key_set(document).items()} == {
        name: key.public_bytes_raw() for name, key in KEYS.items()
    }
    assert [sorted(each) for each in document["keys"]] == [["alg", "crv", "kid", "kty", "use", "x"]] * 2


def test_keys_of_other_kinds_are_left_out() -> None:
    document = encode_key_set(KEYS)
    document["keys"] += [{"kty": "RSA", "kid": "r", "n": "x", "e": "AQAB"}, {"kty": "oct", "k": "x"}, "text"]
    assert decode_key_set(document).keys() == KEYS.keys()


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"keys": {}},
        {"keys": [{"kty": "OKP", "crv": "Ed25519"}]},
        {"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AAAA"}]},
        {"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "é"}]},
        {"keys": [{}] * 33},
    ],
)
def test_a_document_that_is_not_a_key_set(document: object) -> None:
    with pytest.raises(ValueError, match=r"key|base64"):
        decode_key_set(document)


def test_what_is_sealed_is_read_only_with_its_key_and_its_context() -> None:
    key = derive_key(SECRET, "signing keys")
    sealed = seal(key, b"private", "k1")
    assert b"private" not in sealed
    assert sealed != seal(key, b"private", "k1")
    assert unseal(key, sealed, "k1") == b"private"
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for attempt in (
        (key, sealed, "k2"),
        (derive_key(SECRET, "refresh tokens"), sealed, "k1"),
        (derive_key(SECRET + "x", "signing keys"), sealed, "k1"),
        (key, changed, "k1"),
        (key, b"", "k1"),
    ):
        with pytest.raises(UnsealableError):
            unseal(*attempt)


# ---- rotation --------------------------------------------------------------------------------------------------------


def test_a_key_is_published_until_the_last_token_that_it_signed_has_expired() -> None:
    first = SigningKeyRow("k1", b"", b"", NOW, NOW)
    second = dataclasses.replace(first, kid="k2", active_at=NOW + timedelta(days=30))
    end = second.active_at + QUARTER + LEEWAY + RETIREMENT_MARGIN
    assert retired([first], NOW + timedelta(days=999), QUARTER) == []
    assert retired([first, second], end - timedelta(seconds=1), QUARTER) == []
    assert retired([second, first], end, QUARTER) == ["k1"]
