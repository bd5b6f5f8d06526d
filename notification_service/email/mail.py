"""The SMTP connection that sends the mails of notices; a mail is built by `composition.py`."""

import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import aiosmtplib

from contracts.addresses import parse_email
from notification_service.email.composition import compose, recipient_address, to_bytes
from notification_service.recipients import RecipientLimiter, email_recipient
from notification_service.sender import ContactLookup, NoRecipientError, Notice, UndeliverableError
from notification_service.settings import MailSender

_DEFAULT_PORTS: Final = {"smtp": 25, "smtps": 465}
_PERMANENT_CODES: Final = range(500, 600)


class SmtpPort:
    """Port to a mail server with a URL such as `smtp://user:password@mail.example:587`; one connection per mail.

    A password is sent over TLS only: with `smtp://` and a password, or with `require_tls`, a server that does not offer
    STARTTLS gets no mail. The server's certificate is verified, with the CA certificates in `ca_file` or the system's.
    """

    def __init__(  # noqa: PLR0913 - what a mail needs, each by its name
        self,
        url: str,
        sender: MailSender,
        contacts: ContactLookup,
        limiter: RecipientLimiter,
        *,
        seconds: float,
        require_tls: bool = False,
        ca_file: str = "",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ValueError("HOLDFAST_SMTP_URL must be of the form smtp://host:port or smtps://host:port")
        self.host = parts.hostname
        self.port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self.encrypted = parts.scheme == "smtps"
        self.user = unquote(parts.username) if parts.username else None
        self.password = unquote(parts.password) if parts.password else None
        must_upgrade = True if self.user or self.password or require_tls else None
        self.start_tls = False if self.encrypted else must_upgrade
        """True: STARTTLS or no mail. `None`: STARTTLS if the server offers it."""
        self.tls = ssl.create_default_context(cafile=ca_file or None)
        self.sender = sender
        self.contacts = contacts
        self.limiter = limiter
        self.seconds = seconds

    async def send(self, notice: Notice) -> None:
        """Send the mail of a notice; returns after the server has accepted it.

        Raises `UndeliverableError` if no mail can be sent to the address, or if the server permanently rejects the mail
        or the recipient. Raises another error if the server is down, busy, or rejects the sender. No error contains the
        address, because errors are logged and published.
        """
        contact = await self.contacts(notice)
        if notice.proven_only and not contact.email_proven:
            raise NoRecipientError("unproven_contact")
        recipient = recipient_address(contact.email)
        mail = to_bytes(compose(notice, self.sender, contact.email))
        await self.limiter.claim(notice, email_recipient(parse_email(contact.email)))
        try:
            await aiosmtplib.send(
                mail,
                sender=self.sender.address,
                recipients=[recipient],
                hostname=self.host,
                port=self.port,
                username=self.user,
                password=self.password,
                use_tls=self.encrypted,
                start_tls=self.start_tls,
                tls_context=self.tls,
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
