"""Public keys of access tokens as a JSON Web Key Set (RFC 7517, RFC 8037): Ed25519 only."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from infrastructure.security.tokens import ALGORITHM

MAX_KEYS: Final = 32
_CURVE: Final = {"kty": "OKP", "crv": "Ed25519"}
_KEY_BYTES: Final = 32


def encode_key_set(keys: Mapping[str, Ed25519PublicKey]) -> dict[str, Any]:
    """Return the key set of some keys by key id."""
    return {
        "keys": [
            {**_CURVE, "use": "sig", "alg": ALGORITHM, "kid": kid, "x": _base64url(key.public_bytes_raw())}
            for kid, key in keys.items()
        ]
    }


def decode_key_set(document: Any) -> dict[str, Ed25519PublicKey]:
    """Return the Ed25519 keys of a key set by key id; keys of other kinds are left out.

    Raise `ValueError` if the document is not a key set.
    """
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list) or len(found) > MAX_KEYS:
        raise ValueError(f"a key set is an object with a list `keys` of at most {MAX_KEYS}")
    keys: dict[str, Ed25519PublicKey] = {}
    for each in found:
        if not isinstance(each, dict) or {name: each.get(name) for name in _CURVE} != _CURVE:
            continue
        kid, x = each.get("kid"), each.get("x")
        if not isinstance(kid, str) or not isinstance(x, str):
            raise ValueError("a key of a key set has the texts `kid` and `x`")  # noqa: TRY004 - one error for callers
        try:
            raw = base64.urlsafe_b64decode(x + "=" * (-len(x) % 4))
        except (binascii.Error, ValueError):
            raise ValueError("`x` is not base64url") from None
        if len(raw) != _KEY_BYTES:
            raise ValueError(f"an Ed25519 key has {_KEY_BYTES} bytes")
        keys[kid] = Ed25519PublicKey.from_public_bytes(raw)
    return keys


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")
