"""The bytes of a mail, built so that no input becomes a header or a part of its own; texts: `../templates.py`.

Every header is written here as ASCII on lines of at most 76 characters, and every part of the body is base64. The
registry of headers in `email.policy` is not used: it decodes an encoded word in a value, and Python before 3.11.10 and
3.12.5 writes the line breaks in it as they are (CVE-2024-6923). `to_bytes` checks the finished mail all the same.

The Message-ID is derived from the notice. If a process crashes between the server's answer and the update of the row,
the mail is sent twice, and mailboxes can detect the repeat.
"""

import re
from email.header import Header
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import compat32
from email.utils import format_datetime
from typing import Final

from contracts.addresses import envelope_email
from notification_service.sender import Notice, UndeliverableError
from notification_service.settings import MailSender
from notification_service.templates import one_line

HEADERS: Final = (
    "MIME-Version",
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Auto-Submitted",
    "X-Holdfast-Template",
    "X-Holdfast-Cause",
    "Content-Type",
)
"""Names of the headers of every mail, in their order."""
MAX_LINE: Final = 76
MAX_TRANSPORTED_LINE: Final = 998
"""Maximum length of a line in SMTP (RFC 5321), without its end. Only an address may be so long."""

_PLAIN: Final = re.compile(r"[!-~]+(?: [!-~]+)*")
"""Texts that a header may hold as they are: printable ASCII with single blanks, if no encoded word is in it."""
_ATOMS: Final = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(?: [\w!#$%&'*+/=?^`{|}~-]+)*", re.ASCII)
"""Display names that need no quotes (RFC 5322)."""
_POLICY: Final = compat32.clone(linesep="\r\n", max_line_length=0)
_HEADER_LINE: Final = re.compile(rb"([!-9;-~]+): [ -~]*")
_CONTINUATION: Final = re.compile(rb" [ -~]+")


def compose(notice: Notice, sender: MailSender, recipient: str) -> Message:
    """Build the mail of a notice, as text and HTML. The same notice always gives the same mail, byte by byte.

    Raises `UndeliverableError` if `recipient` is not an address that mail can be sent to.
    """
    address = recipient_address(recipient)
    name = _display_name(sender.name)
    mail = MIMEMultipart("alternative", boundary=_boundary(notice), policy=_POLICY)
    del mail["Content-Type"], mail["MIME-Version"]
    headers = {
        "MIME-Version": "1.0",
        "From": f"{name}\r\n <{sender.address}>" if name else sender.address,
        "To": address,
        "Subject": _text("Subject", notice.text.title),
        "Date": format_datetime(notice.accepted_at),
        "Message-ID": f"<{notice.notice_id}@{sender.address.rpartition('@')[2]}>",
        "Auto-Submitted": "auto-generated",
        "X-Holdfast-Template": notice.template,
        "X-Holdfast-Cause": _text("X-Holdfast-Cause", notice.cause),
        "Content-Type": f'multipart/alternative;\r\n boundary="{_boundary(notice)}"',
    }
    for name in HEADERS:
        mail[name] = headers[name]
    for content, subtype in ((notice.text.body, "plain"), (notice.text.html, "html")):
        mail.attach(MIMEText(f"{content}\n", subtype, "utf-8", policy=_POLICY))
    return mail


def recipient_address(recipient: str) -> str:
    """Return the address of a recipient for the envelope. Raise `UndeliverableError` if no mail can be sent to it."""
    try:
        return envelope_email(recipient)
    except ValueError:
        raise UndeliverableError("the address is not valid") from None


def to_bytes(mail: Message) -> bytes:
    """Return a mail for SMTP. Raise `UndeliverableError` if its structure is not the one that `compose` builds."""
    raw = mail.as_bytes(policy=_POLICY)
    if fault := structural_fault(raw):
        raise UndeliverableError(f"the mail would be malformed: {fault}")
    return raw


def structural_fault(raw: bytes) -> str | None:
    """Return why a mail does not have exactly the headers and parts of a notice; `None` if it has."""
    head, _, body = raw.partition(b"\r\n\r\n")
    names: list[str] = []
    for line in head.split(b"\r\n"):
        if match := _HEADER_LINE.fullmatch(line):
            names.append(match[1].decode())
        elif not names or not _CONTINUATION.fullmatch(line):
            return "a line of its head is neither a header nor a continuation"
    if tuple(names) != HEADERS:
        return f"its headers are {', '.join(names)}"
    if any(len(line) > MAX_TRANSPORTED_LINE or b"\r" in line or b"\n" in line for line in raw.split(b"\r\n")):
        return "a line is too long, or ends without CR LF"
    if not raw.isascii():
        return "it is not ASCII"
    if body.count(b"\r\n--") + body.startswith(b"--") != len(("plain", "html", "end")):
        return "it does not have exactly two parts"
    return None


def _text(name: str, value: str) -> str:
    """Return a text for the header `name`: as it is, or in encoded words that no mail program decodes twice."""
    value = one_line(value)
    fits = len(f"{name}: {value}") <= MAX_LINE
    return value if fits and "=?" not in value and _PLAIN.fullmatch(value) else _encoded(name, value)


def _display_name(name: str) -> str:
    """Return the display name of the sender: as it is, or in encoded words, in which no sign separates addresses."""
    name = one_line(name)
    if not name:
        return ""
    fits = len(f"From: {name}") <= MAX_LINE
    return name if fits and "=?" not in name and _ATOMS.fullmatch(name) else _encoded("From", name)


def _encoded(name: str, value: str) -> str:
    return Header(value, "utf-8", maxlinelen=MAX_LINE, header_name=name).encode(linesep="\r\n")


def _boundary(notice: Notice) -> str:
    """Return a boundary that no line of a body can be: base64 has no underscore."""
    return f"=_{notice.notice_id}"
