"""A notice as a mail, and the SMTP connection that takes it.

The Message-ID is derived from the notice, so a mail that is sent twice, because a process died between the server's
answer and the mark, is one mail to every mailbox that cares.
"""

from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Final
from urllib.parse import unquote, urlsplit

import aiosmtplib

from notification_service.teller import Book, Notice, Undeliverable

PORTS: Final = {"smtp": 25, "smtps": 465}
FOR_GOOD: Final = range(500, 600)


def compose(notice: Notice, sender: str, recipient: str) -> EmailMessage:
    """The mail: the words as text, and as HTML beside it. The same notice is the same mail, whenever it is composed.

    Raises `Undeliverable` when `recipient` is no address that a mail can have.
    """
    mail = EmailMessage(policy=SMTP)
    mail["From"] = sender
    try:
        mail["To"] = Address(addr_spec=recipient)
    except (ValueError, IndexError, MessageError):  # what the parser of addresses raises for strange ones
        raise Undeliverable("the address is none") from None
    mail["Subject"] = notice.words.title
    mail["Date"] = format_datetime(notice.accepted_at)
    mail["Message-ID"] = f"<{notice.notice_id}@{parseaddr(sender)[1].partition('@')[2] or 'holdfast.example'}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Holdfast-Template"] = notice.template
    mail["X-Holdfast-Cause"] = notice.cause
    mail.set_content(notice.words.body)
    mail.add_alternative(notice.words.html, subtype="html")
    return mail


class SmtpPort:
    """A mail server at an address such as `smtp://user:password@mail.example:587`; one connection a mail."""

    def __init__(self, url: str, sender: str, contacts: Book, *, seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("HOLDFAST_SMTP_URL is smtp://host:port or smtps://host:port")
        self.host = parts.hostname
        self.port = parts.port or PORTS[parts.scheme]
        self.encrypted = parts.scheme == "smtps"
        self.user = unquote(parts.username) if parts.username else None
        self.password = unquote(parts.password) if parts.password else None
        self.sender = sender
        self.contacts = contacts
        self.seconds = seconds

    async def hand_over(self, notice: Notice) -> None:
        """Return when the server has answered that it has the mail.

        Raises `Undeliverable` when it refuses this mail or this recipient for good; a server that is away, is busy, or
        does not like who we are raises something else. No error tells the address: they are logged and made known.
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
            raise _verdict(refused.recipients[0], recipient) from None
        except aiosmtplib.SMTPException as error:
            raise _verdict(error, recipient) from None


def _verdict(error: aiosmtplib.SMTPException, recipient: str) -> Exception:
    said = f"{type(error).__name__}: {getattr(error, 'code', '')} {error.message}".replace(recipient, "the recipient")
    match error:
        case aiosmtplib.SMTPDataError() | aiosmtplib.SMTPRecipientRefused() if error.code in FOR_GOOD:
            return Undeliverable(said)
        case _:
            return ConnectionError(said)
