"""Mails, and the SMTP connection that sends them; texts: `../templates.py`.

The Message-ID is derived from the notice. If a process crashes between the server's answer and the update of the row,
the mail is sent twice, and mailboxes can detect the repeat.
"""

from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Final
from urllib.parse import unquote, urlsplit

import aiosmtplib

from notification_service.sender import ContactLookup, Notice, UndeliverableError

_DEFAULT_PORTS: Final = {"smtp": 25, "smtps": 465}
_PERMANENT_CODES: Final = range(500, 600)


def compose(notice: Notice, sender: str, recipient: str) -> EmailMessage:
    """Build the mail of a notice, as text and HTML. The same notice always gives the same mail.

    Raises `UndeliverableError` if `recipient` is not a valid address.
    """
    mail = EmailMessage(policy=SMTP)
    mail["From"] = sender
    try:
        mail["To"] = Address(addr_spec=recipient)
    except (ValueError, IndexError, MessageError):  # raised by the address parser
        raise UndeliverableError("the address is not valid") from None
    mail["Subject"] = notice.text.title
    mail["Date"] = format_datetime(notice.accepted_at)
    mail["Message-ID"] = f"<{notice.notice_id}@{parseaddr(sender)[1].partition('@')[2] or 'holdfast.example'}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Holdfast-Template"] = notice.template
    mail["X-Holdfast-Cause"] = notice.cause
    mail.set_content(notice.text.body)
    mail.add_alternative(notice.text.html, subtype="html")
    return mail


class SmtpPort:
    """Port to a mail server with a URL such as `smtp://user:password@mail.example:587`; one connection per mail."""

    def __init__(self, url: str, sender: str, contacts: ContactLookup, *, seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ValueError("HOLDFAST_SMTP_URL must be of the form smtp://host:port or smtps://host:port")
        self.host = parts.hostname
        self.port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self.encrypted = parts.scheme == "smtps"
        self.user = unquote(parts.username) if parts.username else None
        self.password = unquote(parts.password) if parts.password else None
        self.sender = sender
        self.contacts = contacts
        self.seconds = seconds

    async def send(self, notice: Notice) -> None:
        """Send the mail of a notice; returns after the server has accepted it.

        Raises `UndeliverableError` if the server permanently rejects the mail or the recipient. Raises another error if
        the server is down, busy, or rejects the sender. No error contains the address, because errors are logged and
        published.
        """
        recipient = (await self.contacts(notice)).email
        mail = compose(notice, self.sender, recipient)
        try:
            await aiosmtplib.send(
                mail,
                sender=parseaddr(self.sender)[1],
                recipients=[recipient],
                hostname=self.host,
                port=self.port,
                username=self.user,
                password=self.password,
                use_tls=self.encrypted,
                timeout=self.seconds,
            )
        except aiosmtplib.SMTPRecipientsRefused as refused:
            raise _to_error(refused.recipients[0], recipient) from None
        except aiosmtplib.SMTPException as error:
            raise _to_error(error, recipient) from None


def _to_error(error: aiosmtplib.SMTPException, recipient: str) -> Exception:
    detail = f"{type(error).__name__}: {getattr(error, 'code', '')} {error.message}".replace(recipient, "the recipient")
    match error:
        case aiosmtplib.SMTPDataError() | aiosmtplib.SMTPRecipientRefused() if error.code in _PERMANENT_CODES:
            return UndeliverableError(detail)
        case _:
            return ConnectionError(detail)
