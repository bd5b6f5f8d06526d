"""E-mail addresses and telephone numbers: one parser for checkouts, settings, and everything that sends to them.

The parser reads syntax only: it asks no name server, so an accepted address may still not exist. Pure.
"""

import re
from email.utils import parseaddr
from typing import Annotated, Final

from email_validator import EmailNotValidError, ValidatedEmail, validate_email
from pydantic import AfterValidator, Field

MAX_EMAIL_LENGTH: Final = 254
"""Maximum length of an address in an SMTP envelope (RFC 5321)."""
MAX_PHONE_LENGTH: Final = 32
"""Maximum length of a telephone number as it is entered."""

_ENCODED_WORD: Final = "=?"
_PHONE_SEPARATORS: Final = re.compile(r"\(0\)|[ ()./\-]")
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")
_EMAIL_EXAMPLE: Final = "expected an address such as ann@example.org"
_PHONE_EXAMPLE: Final = "expected a number with its country code, such as +44 20 7946 0123"


def parse_email(text: str) -> str:
    """Return an e-mail address in its normal form. Raise `ValueError` if no mail can be sent to it.

    The domain is in lower case and in its own script (`ann@bücher.example`); the local part is unchanged. A quoted
    local part is accepted, and loses quotes that it does not need. A local part outside ASCII is refused, because only
    some mail servers transport it (SMTPUTF8); so is a domain that is an IP address, or has no dot.
    """
    return _validate(text).normalized


def envelope_email(text: str) -> str:
    """Return an address as SMTP needs it: in ASCII, with the domain in Punycode. Raise `ValueError` as `parse_email`.

    Addresses that were accepted by earlier versions may be invalid.
    """
    address = _validate(text).ascii_email
    assert address is not None  # only an address with a local part outside ASCII has none
    return address


def parse_phone(text: str) -> str:
    """Return a telephone number in E.164: `+442079460123`. Raise `ValueError` if it is not one.

    Blanks, parentheses, dots, slashes and hyphens may separate digits, `(0)` is ignored, and `00` may replace the `+`.
    """
    digits = _PHONE_SEPARATORS.sub("", text) if len(text) <= MAX_PHONE_LENGTH else ""
    number = f"+{digits[2:]}" if digits.startswith("00") else digits
    if not _E164.fullmatch(number):
        raise ValueError(f"this is not an international telephone number; {_PHONE_EXAMPLE}")
    return number


def _validate(text: str) -> ValidatedEmail:
    if len(text) > MAX_EMAIL_LENGTH:
        raise ValueError(f"an e-mail address has at most {MAX_EMAIL_LENGTH} characters; {_EMAIL_EXAMPLE}")
    if _ENCODED_WORD in text:  # mail programs decode it wherever they find it
        raise ValueError(f"an e-mail address must not contain {_ENCODED_WORD}; {_EMAIL_EXAMPLE}")
    try:
        parsed = validate_email(
            text,
            allow_smtputf8=False,
            allow_quoted_local=True,
            allow_domain_literal=False,
            check_deliverability=False,
            strict=True,
            test_environment=True,  # the reserved domain .test is as good as .example
        )
    except EmailNotValidError as error:
        raise ValueError(f"{error} {_EMAIL_EXAMPLE.capitalize()}.") from None
    if parseaddr(parsed.ascii_email or "")[1] != parsed.ascii_email:
        raise ValueError(f"this quoted local part cannot be sent to; {_EMAIL_EXAMPLE}")
    return parsed


EmailAddress = Annotated[str, Field(max_length=MAX_EMAIL_LENGTH), AfterValidator(parse_email)]
"""An e-mail address from a client, normalised."""
PhoneNumber = Annotated[str, Field(max_length=MAX_PHONE_LENGTH), AfterValidator(parse_phone)]
"""A telephone number from a client, normalised to E.164."""
