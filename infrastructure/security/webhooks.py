"""Signatures of webhooks: proof that the sender knows the secret, and that the webhook was sent just now.

`Holdfast-Signature: t=1795231481,v1=5257a869…`: `v1` is HMAC-SHA256 over the Unix time in `t`, a dot and the raw body,
in hexadecimal. While secrets are rotated, a header may have several `v1`; one valid signature is enough.
"""

import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Final

HEADER: Final = "Holdfast-Signature"
TOLERANCE: Final = timedelta(seconds=300)
"""Greatest difference between the signed time and ours. An older webhook may be a replay of a recorded one."""


class BadSignature(Exception):
    """The webhook was not signed with our secret."""


class StaleWebhook(Exception):
    """The webhook was signed with our secret, but too long ago or in the future."""


def sign(secret: str, body: bytes, now: datetime) -> str:
    """Return the header's value for `body`, sent `now`."""
    moment = str(int(now.timestamp()))
    return f"t={moment},v1={_digest(secret, moment, body)}"


def verify(secret: str, header: str, body: bytes, now: datetime, tolerance: timedelta = TOLERANCE) -> None:
    """Raise `BadSignature` or `StaleWebhook` unless `header` signs `body` for a time close to `now`.

    The signature is compared first, and in constant time, so that forged webhooks reveal nothing about our clock.
    """
    fields = [part.strip().partition("=")[::2] for part in header.split(",")]
    moments = [value for name, value in fields if name == "t"]
    signatures = [value for name, value in fields if name == "v1"]
    if len(moments) != 1 or not moments[0].isascii() or not moments[0].isdigit() or len(moments[0]) > 12:  # noqa: PLR2004 - far beyond our time
        raise BadSignature(f"the {HEADER} header needs exactly one t=<Unix time in seconds>")
    expected = _digest(secret, moments[0], body).encode()
    # A list, not a generator: the time taken must not depend on which signature matches.
    if not any([hmac.compare_digest(expected, each.encode(errors="replace")) for each in signatures]):  # noqa: C419 - see above
        raise BadSignature(f"the {HEADER} header has no valid v1 signature of this body")
    if abs(now.timestamp() - int(moments[0])) > tolerance.total_seconds():
        raise StaleWebhook(f"signed more than {tolerance.total_seconds():.0f} s away from now")


def _digest(secret: str, moment: str, body: bytes) -> str:
    return hmac.new(secret.encode(), moment.encode() + b"." + body, hashlib.sha256).hexdigest()
