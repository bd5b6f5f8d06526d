"""Signatures of webhooks: who sends one proves that it knows the secret, and that it was sent just now.

`Holdfast-Signature: t=1795231481,v1=5257a869…`: `v1` is HMAC-SHA256 over the Unix time in `t`, a dot and the raw body,
in hexadecimal. Several `v1` may stand in one header, while secrets are rotated; one that fits is enough.
"""

import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Final

HEADER: Final = "Holdfast-Signature"
TOLERANCE: Final = timedelta(seconds=300)
"""How old a webhook may be, or how far ahead its sender's clock: afterwards it may be somebody's recording."""


class BadSignature(Exception):
    """It was not signed with our secret: whoever sent it is nobody."""


class StaleWebhook(Exception):
    """It was signed with our secret, but too long ago, or in the future."""


def sign(secret: str, body: bytes, now: datetime) -> str:
    """The header's value for `body`, sent `now`."""
    moment = str(int(now.timestamp()))
    return f"t={moment},v1={_digest(secret, moment, body)}"


def verify(secret: str, header: str, body: bytes, now: datetime, tolerance: timedelta = TOLERANCE) -> None:
    """Return if `header` signs `body` for about `now`; `BadSignature` or `StaleWebhook` if it does not.

    The signature is looked at first, in constant time: a stranger learns nothing about our clock.
    """
    fields = [part.strip().partition("=")[::2] for part in header.split(",")]
    moments = [value for name, value in fields if name == "t"]
    signatures = [value for name, value in fields if name == "v1"]
    if len(moments) != 1 or not moments[0].isascii() or not moments[0].isdigit() or len(moments[0]) > 12:  # noqa: PLR2004 - far beyond our time
        raise BadSignature(f"the {HEADER} header needs exactly one t=<Unix time in seconds>")
    expected = _digest(secret, moments[0], body).encode()
    # A list, not a generator: every signature is compared, whichever fits.
    if not any([hmac.compare_digest(expected, each.encode(errors="replace")) for each in signatures]):  # noqa: C419 - see above
        raise BadSignature(f"the {HEADER} header has no v1 that signs this body")
    if abs(now.timestamp() - int(moments[0])) > tolerance.total_seconds():
        raise StaleWebhook(f"signed more than {tolerance.total_seconds():.0f} s away from now")


def _digest(secret: str, moment: str, body: bytes) -> str:
    return hmac.new(secret.encode(), moment.encode() + b"." + body, hashlib.sha256).hexdigest()
