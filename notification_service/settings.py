"""What the notification service and its processors are told from outside, beside what every service is."""

from typing import Self

from pydantic import Field, SecretStr, model_validator

from infrastructure.settings import Settings as Shared


class Settings(Shared):
    """Environment variables `HOLDFAST_SMTP_URL` and so on."""

    smtp_url: SecretStr = Field(
        default=SecretStr("smtp://127.0.0.1:1025"),
        description="smtp:// (STARTTLS when it is offered) or smtps://, with user:password@ where it wants them",
    )
    mail_from: str = Field(
        default="Holdfast <shop@holdfast.example>", max_length=320, description="whom mails are from"
    )
    notice_attempts: int = Field(default=20, ge=1, description="so often is a notice tried before it is put aside")
    notice_pause_seconds: float = Field(
        default=1, gt=0, description="between the first two attempts; it doubles with each"
    )
    notice_longest_pause_seconds: float = Field(default=600, gt=0, description="up to this")
    notice_seconds: float = Field(default=15, gt=0, description="so long may one attempt take")
    contact_days: int = Field(default=180, ge=1, description="how long it is remembered how a shopper is reached")
    catcher_smtp_port: int = Field(default=1025, ge=0, le=65535, description="where the local mail catcher listens")

    @model_validator(mode="after")
    def _pauses_do_not_shrink(self) -> Self:
        if self.notice_longest_pause_seconds < self.notice_pause_seconds:
            raise ValueError("HOLDFAST_NOTICE_LONGEST_PAUSE_SECONDS is the longest pause, so not below the first")
        return self
