"""Settings of the notification service and its processors, in addition to the common ones."""

import re
from typing import Final, NamedTuple, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from contracts.addresses import envelope_email
from infrastructure.process.settings import Settings as SharedSettings

_MAILBOX: Final = re.compile(r"(?:(?P<name>[^<>\x00-\x1f\x7f-\x9f\u2028\u2029]*)<(?P<inner>[^<>]*)>|(?P<bare>[^<>]*))")


class MailSender(NamedTuple):
    """The sender of mails: a display name, perhaps empty, and an address for the envelope, in ASCII."""

    name: str
    address: str

    @classmethod
    def parse(cls, text: str) -> "MailSender":
        """Return the sender in `Name <address>` or `address`. Raise `ValueError` if there is none."""
        match = _MAILBOX.fullmatch(text.strip())
        if match is None:
            raise ValueError("expected an address such as shop@example.org, or Shop <shop@example.org>")
        name = " ".join((match["name"] or "").split()).removeprefix('"').removesuffix('"')
        address = match["bare"] if match["inner"] is None else match["inner"]
        return cls(name, envelope_email(address))


class Settings(SharedSettings):
    """Environment variables `HOLDFAST_SMTP_URL` and so on."""

    smtp_url: SecretStr = Field(
        default=SecretStr("smtp://127.0.0.1:1025"),
        description="smtp:// (STARTTLS if offered, required with a password) or smtps://, user:password@ if needed",
    )
    smtp_ca_file: str = Field(default="", description="CA certificates of the mail server, PEM; empty: the system's")
    mail_from: str = Field(default="Holdfast <shop@holdfast.example>", max_length=320, description="sender of mails")
    notice_attempts: int = Field(default=20, ge=1, description="attempts before a notice fails permanently")
    notice_pause_seconds: float = Field(
        default=1, gt=0, description="pause between the first two attempts; doubles with each attempt"
    )
    notice_longest_pause_seconds: float = Field(default=600, gt=0, description="maximum pause between two attempts")
    notice_seconds: float = Field(default=15, gt=0, description="deadline of one attempt")
    contact_days: int = Field(default=180, ge=1, description="days for which contacts are kept")
    notice_days: int = Field(default=90, ge=10, description="days for which notices and their texts are kept")
    email_limit_hour: int = Field(default=20, ge=0, description="mails to one address per hour")
    email_limit_day: int = Field(default=60, ge=0, description="mails to one address per day")
    email_limit_total_hour: int = Field(default=0, ge=0, description="mails to all addresses per hour; 0: no limit")
    sms_limit_hour: int = Field(default=10, ge=0, description="SMS to one number per hour")
    sms_limit_day: int = Field(default=30, ge=0, description="SMS to one number per day")
    sms_limit_total_hour: int = Field(default=1_000, ge=0, description="SMS to all numbers per hour; 0: no limit")
    service_limit_hour: int = Field(
        default=20, ge=0, description="notices of other services to one address, or to one number, per hour"
    )
    service_limit_day: int = Field(
        default=60, ge=0, description="notices of other services to one address, or to one number, per day"
    )
    catcher_smtp_port: int = Field(default=1025, ge=0, le=65535, description="SMTP port of the local mail catcher")

    @property
    def mail_sender(self) -> MailSender:
        """The sender of mails."""
        return MailSender.parse(self.mail_from)

    @field_validator("mail_from")
    @classmethod
    def _sender_has_an_address(cls, text: str) -> str:
        try:
            MailSender.parse(text)
        except ValueError as error:
            raise ValueError(f"HOLDFAST_MAIL_FROM: {error}") from None
        return text

    @model_validator(mode="after")
    def _pauses_do_not_shrink(self) -> Self:
        if self.notice_longest_pause_seconds < self.notice_pause_seconds:
            raise ValueError(
                "HOLDFAST_NOTICE_LONGEST_PAUSE_SECONDS must not be less than HOLDFAST_NOTICE_PAUSE_SECONDS"
            )
        return self
