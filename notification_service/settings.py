"""Settings of the notification service and its processors, in addition to the common ones."""

from typing import Self

from pydantic import Field, SecretStr, model_validator

from infrastructure.process.settings import Settings as SharedSettings


class Settings(SharedSettings):
    """Environment variables `HOLDFAST_SMTP_URL` and so on."""

    smtp_url: SecretStr = Field(
        default=SecretStr("smtp://127.0.0.1:1025"),
        description="smtp:// (STARTTLS if offered) or smtps://, with user:password@ if required",
    )
    mail_from: str = Field(default="Holdfast <shop@holdfast.example>", max_length=320, description="sender of mails")
    notice_attempts: int = Field(default=20, ge=1, description="attempts before a notice fails permanently")
    notice_pause_seconds: float = Field(
        default=1, gt=0, description="pause between the first two attempts; doubles with each attempt"
    )
    notice_longest_pause_seconds: float = Field(default=600, gt=0, description="maximum pause between two attempts")
    notice_seconds: float = Field(default=15, gt=0, description="deadline of one attempt")
    contact_days: int = Field(default=180, ge=1, description="days for which contacts are kept")
    catcher_smtp_port: int = Field(default=1025, ge=0, le=65535, description="SMTP port of the local mail catcher")

    @model_validator(mode="after")
    def _pauses_do_not_shrink(self) -> Self:
        if self.notice_longest_pause_seconds < self.notice_pause_seconds:
            raise ValueError(
                "HOLDFAST_NOTICE_LONGEST_PAUSE_SECONDS must not be less than HOLDFAST_NOTICE_PAUSE_SECONDS"
            )
        return self
