"""Encryption of what a service stores and only that service may read: AES-256-GCM with a key derived from a secret."""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES: Final = 12


class UnsealableError(ValueError):
    """The value was sealed with another secret, for another purpose, or was changed."""


def derive_key(secret: str, purpose: str) -> bytes:
    """Return the 32 bytes of the key of one purpose. Keys of different purposes say nothing about each other."""
    return HKDF(SHA256(), 32, salt=None, info=f"holdfast {purpose}".encode()).derive(secret.encode())


def seal(key: bytes, value: bytes, context: str) -> bytes:
    """Encrypt `value`. It can be read only with the same key and the same context, such as the id of its row."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, value, context.encode())


def unseal(key: bytes, sealed: bytes, context: str) -> bytes:
    """Return a value that `seal` encrypted. Raise `UnsealableError` for any other key, context or value."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context.encode())
    except (InvalidTag, ValueError):
        raise UnsealableError("the value cannot be decrypted with this secret") from None
