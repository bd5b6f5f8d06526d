"""Mails over TLS: a real mail server with and without STARTTLS, and what a password needs before it is sent."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult

from infrastructure.process.background_service import BackgroundService
from notification_service.email.__main__ import build_port
from notification_service.email.mail import SmtpPort
from notification_service.processor import PortContext
from notification_service.recipients import RecipientLimiter
from notification_service.sender import Notice
from notification_service.settings import Settings

NAME = "localhost"
NOTICE = {
    "notice_id": "n-1",
    "user_id": "ann",
    "cause": "order/o-1/5",
    "channel": "email",
    "template": "message",
    "order_id": None,
    "accepted_at": datetime(2026, 11, 21, tzinfo=UTC),
    "too_late_at": None,
    "traceparent": None,
    "params": {"title": "Hello", "body": "b"},
    "by_service": False,
    "proven_only": False,
    "recipient": None,
}


class Mails:
    """Handler and authenticator: mails and passwords that arrived, each with whether the connection was encrypted."""

    def __init__(self) -> None:
        self.mails: list[bool] = []
        self.passwords: list[tuple[bytes, bool]] = []

    async def handle_DATA(self, server: SMTP, session: Any, _: Any) -> str:  # noqa: N802 - aiosmtpd's
        self.mails.append(_encrypted(server, session))
        return "250 taken"

    def authenticate(self, server: SMTP, session: Any, *details: Any) -> AuthResult:
        self.passwords.append((details[-1].password, _encrypted(server, session)))
        return AuthResult(success=True)


def _encrypted(server: SMTP, session: Any) -> bool:
    transport = server.transport
    return session.ssl is not None or (transport is not None and transport.get_extra_info("ssl_object") is not None)


class MailServer(NamedTuple):
    port: int
    heard: Mails
    ca_file: str


@asynccontextmanager
async def mail_server(folder: Path, kind: str) -> AsyncIterator[MailServer]:
    """A mail server that is `plain`, offers `starttls`, or is `smtps`."""
    authority, heard = trustme.CA(), Mails()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    protocol = partial(
        SMTP,
        heard,
        hostname=NAME,
        tls_context=context if kind == "starttls" else None,
        authenticator=heard.authenticate,
        auth_require_tls=False,  # the worst server: it takes a password in the clear
    )
    server = await asyncio.get_running_loop().create_server(
        protocol, "127.0.0.1", 0, ssl=context if kind == "smtps" else None
    )
    try:
        yield MailServer(server.sockets[0].getsockname()[1], heard, str(folder / "ca.pem"))
    finally:
        server.close()


async def _ann(*_: object) -> list[tuple[Any, ...]]:
    return [("ann", "ann@mail.example", None, True, False)]


def port(url: str, **more: Any) -> SmtpPort:
    settings = Settings.model_validate({"smtp_url": url, "notice_seconds": 10, **more})
    built = build_port(PortContext(settings, _Contacts(), BackgroundService(settings)))  # type: ignore[arg-type]  # one method
    built.limiter = _Unlimited(built.limiter.connection.connect, "email", built.limiter.limits)
    return built


class _Unlimited(RecipientLimiter):
    """Grants every claim, without a database: `test_notification_recipients.py` is about the real one."""

    async def claim(self, notice: Notice, recipient: str) -> None:
        pass


class _Contacts:
    fetch = staticmethod(_ann)


@pytest.mark.parametrize(
    ("kind", "scheme", "login", "profile", "delivered"),
    [
        ("plain", "smtp", "", "local", True),
        ("plain", "smtp", "u:p@", "local", False),
        ("plain", "smtp", "u:p@", "production", False),
        ("starttls", "smtp", "", "local", True),
        ("starttls", "smtp", "u:p@", "local", True),
        ("starttls", "smtp", "u:p@", "production", True),
        ("smtps", "smtps", "", "production", True),
        ("smtps", "smtps", "u:p@", "local", True),
    ],
)
async def test_a_password_goes_over_tls_or_not_at_all(
    tmp_path: Path, kind: str, scheme: str, login: str, profile: str, delivered: bool
) -> None:
    async with mail_server(tmp_path, kind) as server:
        url = f"{scheme}://{login}{NAME}:{server.port}"
        sender = port(url, smtp_ca_file=server.ca_file, profile=profile)
        if delivered:
            await sender.send(Notice.from_row(NOTICE))
        else:
            with pytest.raises(ConnectionError):
                await sender.send(Notice.from_row(NOTICE))
    assert server.heard.mails == ([kind != "plain"] if delivered else [])
    assert server.heard.passwords == ([(b"p", True)] if login and delivered else [])


@pytest.mark.parametrize(("kind", "scheme"), [("starttls", "smtp"), ("smtps", "smtps")])
async def test_a_server_with_an_unknown_certificate_gets_neither_mail_nor_password(
    tmp_path: Path, kind: str, scheme: str
) -> None:
    async with mail_server(tmp_path, kind) as server:
        for url in (f"{scheme}://u:p@{NAME}:{server.port}", f"{scheme}://u:p@127.0.0.1:{server.port}"):
            with pytest.raises(
                OSError, match=r"certificate verify failed|Hostname mismatch|SMTPConnectError|IP address"
            ):
                await port(url, smtp_ca_file="" if NAME in url else server.ca_file).send(Notice.from_row(NOTICE))
    assert (server.heard.mails, server.heard.passwords) == ([], [])


@pytest.mark.parametrize(
    ("url", "more", "required"),
    [
        ("smtp://mail.example", {"profile": "production"}, True),
        ("smtp://mail.example", {"profile": "production", "allow_plaintext": "smtp"}, None),
        ("smtp://127.0.0.1:25", {"profile": "production"}, None),
        ("smtp://mail.example", {}, None),
        ("smtp://u:p@mail.example", {"allow_plaintext": "smtp"}, True),
        ("smtp://u@mail.example", {}, True),
        ("smtps://u:p@mail.example", {"profile": "production"}, False),
    ],
)
def test_production_requires_starttls_beyond_this_machine(
    url: str, more: dict[str, str], required: bool | None
) -> None:
    assert port(url, **more).start_tls is required
