"""A mail as it is written, the catcher that takes it, and what a processor makes of a port that fails."""

import asyncio
import email
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import policy
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.inventory import Line, Money
from infrastructure.process.health import HealthServer
from infrastructure.storage.job_queue import Done, Reschedule
from notification_service.catcher.__main__ import CatcherProtocol, MailHandler
from notification_service.catcher.mailbox import Mailbox, ParsedMail
from notification_service.catcher.pages import MailPages
from notification_service.email.composition import compose, to_bytes
from notification_service.email.mail import SmtpPort
from notification_service.model import format_lines
from notification_service.push.frames import notice_event
from notification_service.recipients import RecipientLimiter, RecipientLimits
from notification_service.sender import (
    ContactLookup,
    NoRecipientError,
    Notice,
    RecipientLimitError,
    Sender,
    TotalLimitError,
    UndeliverableError,
)
from notification_service.settings import MailSender, Settings
from notification_service.sms.simulated import mask_number
from notification_service.templates import render, visible

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SENDER = MailSender.parse("Holdfast <shop@shop.example>")


def row(**more: Any) -> dict[str, Any]:
    return {
        "notice_id": "n-1",
        "user_id": "ann",
        "cause": "order/o-1/5",
        "channel": "email",
        "template": "message",
        "order_id": None,
        "accepted_at": NOW,
        "too_late_at": None,
        "traceparent": None,
        "by_service": False,
        "proven_only": False,
        "recipient": None,
        "params": {"title": "Ça va?", "body": "<b>Hello</b> & good-bye"},
        **more,
    }


def notice(**more: Any) -> Notice:
    return Notice.from_row(row(**more))


# ---- the mail -------------------------------------------------------------------------------------------------------


def test_the_same_notice_is_the_same_mail() -> None:
    first, second = (compose(notice(), SENDER, "ann@mail.example") for _ in range(2))
    assert first["Message-ID"] == second["Message-ID"] == "<n-1@shop.example>"
    assert to_bytes(first) == to_bytes(second)


def test_a_mail_is_text_and_html() -> None:
    mail = email.message_from_bytes(bytes(compose(notice(), SENDER, "ann@mail.example")), policy=policy.default)
    assert mail["Subject"] == "Ça va?"
    assert mail["Date"] == "Sat, 21 Nov 2026 12:00:00 +0000"
    text, page = (mail.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None
    assert text.get_content().strip() == "<b>Hello</b> & good-bye"
    assert page is not None
    assert "&lt;b&gt;Hello&lt;/b&gt; &amp; good-bye" in page.get_content()


def test_no_title_makes_a_header() -> None:
    mail = compose(notice(params={"title": "Hi\r\nBcc: all@mail.example", "body": "b"}), SENDER, "ann@mail.example")
    assert mail["Bcc"] is None
    assert mail["Subject"] == "Hi Bcc: all@mail.example"


HEADERS = [
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
]
"""Names of the headers of every mail."""
HOSTILE = [
    "=?utf-8?q?Refund=0d=0aContent-Type:_text/html=0d=0a=0d=0a<h1>anything</h1>?=",
    "=?utf-8?q?a=0d=0aBcc:_all@mail.example?=",
    "=?utf-8?b?YQ0KQmNjOiBhbGxAbWFpbC5leGFtcGxl?=",
    "=?us-ascii?q?=0a?==?us-ascii?q?=0d?=",
    "=?utf-8?q?=3D=3Futf-8=3Fq=3F=0d=0a=3F=3D?=",
    "=?",
    "?=",
    "\r\nBcc: all@mail.example",
    "\rBcc: all@mail.example",
    "\nBcc: all@mail.example",
    "\x85Bcc: all@mail.example",
    "\u2028Bcc: all@mail.example\u2029",
    "\v\f\x1c\x1d\x1e\x1f",
    "\0",
    "\u202e\u2066\u200f\ufeff\u200b",
    "\ud800",
    "\r\n.\r\n",
    "\n.\n",
    ".",
    "\r\n\r\n<script>alert(1)</script>",
    "\nFrom bob@mail.example",
    "\n--=_n-1\nContent-Type: text/html\n\n<h1>anything</h1>\n--=_n-1--\n",
    "--=_n-1--",
    "Content-Type: text/html; boundary=x",
    "x" * 1200,
    "é" * 400,
    "🫖" * 200,
    "a  b",
    "\t",
    " ",
    '"',
    "\\",
    "<a@b.example>, ",
    "(",
]
hostile = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=12)), max_size=5).map("".join)
causes = hostile.map(lambda text: "".join(each for each in text if " " <= each <= "~")[:200] or "c")
"""The contract lets only printable ASCII into a cause."""


def raw_header_names(raw: bytes) -> list[str]:
    """Read the names of the headers as a mail server does: up to the first empty line, without continuations."""
    lines = raw.split(b"\r\n\r\n")[0].split(b"\r\n")
    return [line.partition(b":")[0].decode() for line in lines if not line.startswith((b" ", b"\t"))]


@given(title=hostile, body=hostile, cause=causes, name=hostile)
def test_no_input_becomes_structure_of_a_mail(title: str, body: str, cause: str, name: str) -> None:
    lines = format_lines([Line(product="P", quantity=1, price=Money(amount=85, currency="GBP"))], {"P": name})
    sender = MailSender(" ".join(visible(name).split())[:200], "shop@shop.example")
    for template, params in (
        ("message", {"title": title, "body": body}),
        ("order_confirmed", {"order": title, "lines": lines, "total": body}),
        ("order_shipped", {"order": title, "carrier": name, "tracking": body}),
    ):
        told = notice(template=template, params=params, cause=cause)
        raw = to_bytes(compose(told, sender, "ann@mail.example"))
        assert raw_header_names(raw) == HEADERS
        assert raw.isascii()
        assert raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n")
        assert max(map(len, raw.split(b"\r\n"))) <= 78
        mail = email.message_from_bytes(raw, policy=policy.default)
        assert list(mail.keys()) == HEADERS
        assert mail.defects == []
        assert (mail.get_content_type(), mail["To"]) == ("multipart/alternative", "ann@mail.example")
        assert [each.addr_spec for each in mail["From"].addresses] == ["shop@shop.example"]
        assert mail["Subject"] == told.text.title
        assert mail["X-Holdfast-Cause"] == " ".join(cause.split())
        text, page = mail.iter_parts()
        assert [part.get_content_type() for part in (text, page)] == ["text/plain", "text/html"]
        assert text.get_content() == f"{told.text.body}\n"
        assert "<script" not in page.get_content()


def test_a_mail_with_another_structure_is_not_sent() -> None:
    mail = compose(notice(), SENDER, "ann@mail.example")
    mail["Bcc"] = "all@mail.example"
    with pytest.raises(UndeliverableError, match="malformed"):
        to_bytes(mail)
    mail = compose(notice(), SENDER, "ann@mail.example")
    mail.attach(mail.get_payload(0))
    with pytest.raises(UndeliverableError, match="malformed"):
        to_bytes(mail)


@pytest.mark.parametrize(
    ("address", "sent_to"),
    [
        ("ann@bücher.example", "ann@xn--bcher-kva.example"),
        ('"a b"@mail.example', '"a b"@mail.example'),
        ('"a@b,c"@mail.example', '"a@b,c"@mail.example'),
        (f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.org", f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.org"),
    ],
)
def test_a_mail_is_addressed_in_ascii(address: str, sent_to: str) -> None:
    raw = to_bytes(compose(notice(), SENDER, address))
    assert raw_header_names(raw) == HEADERS
    [box] = email.message_from_bytes(raw, policy=policy.default)["To"].addresses
    assert box.addr_spec == sent_to


@pytest.mark.parametrize(
    "address",
    [
        "a,b@mail.example",
        "ann@",
        "@",
        "<ann@mail.example>",
        "a\x00b@mail.example",
        "?=@[=?x",
        "jürgen@mail.example",
        "john.@mail.example",
        "a@x..example",
        "x@y>",
        "an\u200bn@mail.example",
        f"{'a' * 80}@ö{'b' * 80}.example",
    ],
)
def test_an_invalid_address_is_not_tried(address: str) -> None:
    with pytest.raises(UndeliverableError):
        compose(notice(), SENDER, address)


LIMITER = RecipientLimiter(Settings, "email", RecipientLimits.of(Settings(), "email"))  # type: ignore[arg-type]
"""Limits without a connection: no test claims anything."""


@pytest.mark.parametrize("url", ["http://mail.example", "smtp://", "mail.example:25"])
def test_a_mail_server_has_an_smtp_address(url: str) -> None:
    with pytest.raises(ValueError, match="HOLDFAST_SMTP_URL"):
        SmtpPort(url, SENDER, ContactLookup(_nobody), LIMITER, seconds=1)


def test_an_smtp_address_holds_a_name_and_a_password() -> None:
    port = SmtpPort("smtps://a%40b:p%3Ass@mail.example", SENDER, ContactLookup(_nobody), LIMITER, seconds=1)
    assert (port.host, port.port, port.encrypted, port.user, port.password) == (
        "mail.example",
        465,
        True,
        "a@b",
        "p:ss",
    )


async def _nobody(_: str, __: object) -> list[tuple[Any, ...]]:
    return []


async def test_an_unknown_contact_is_looked_up_again() -> None:
    with pytest.raises(LookupError):
        await ContactLookup(_nobody)(notice())


async def test_the_contact_of_anothers_order_is_never_used() -> None:
    async def of_bob(_: str, __: object) -> list[tuple[Any, ...]]:
        return [("bob", "bob@mail.example", None, True, False)]

    with pytest.raises(UndeliverableError, match="another user"):
        await ContactLookup(of_bob)(notice(order_id="o-1"))


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("shop@shop.example", ("", "shop@shop.example")),
        ("Holdfast <shop@shop.example>", ("Holdfast", "shop@shop.example")),
        ('"Mugs, Ltd" <shop@shop.example>', ("Mugs, Ltd", "shop@shop.example")),
        ("Bücher <shop@bücher.example>", ("Bücher", "shop@xn--bcher-kva.example")),
    ],
)
def test_the_sender_of_mails_may_have_a_name_and_an_international_domain(text: str, sender: tuple[str, str]) -> None:
    settings = Settings(mail_from=text)
    assert settings.mail_sender == sender
    mail = email.message_from_bytes(
        to_bytes(compose(notice(), settings.mail_sender, "ann@x.example")), policy=policy.default
    )
    [box] = mail["From"].addresses
    assert (box.display_name, box.addr_spec) == sender
    assert mail["Message-ID"].endswith(f"@{sender[1].partition('@')[2]}>")


@pytest.mark.parametrize(
    "text", ["", "shop", "Shop <shop>", "Shop <shop@shop.example", "a@b.example\r\nBcc: c@d.example", "é@shop.example"]
)
def test_a_bad_sender_of_mails_is_refused_at_the_start_and_named(text: str) -> None:
    with pytest.raises(ValidationError, match="HOLDFAST_MAIL_FROM"):
        Settings(mail_from=text)


# ---- the other channels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "shown"), [("+44 20 7946 0123", "•••••••••123"), ("112", "•••112"), ("0113 496-0999", "••••••••999")]
)
def test_a_phone_number_is_masked_except_for_its_end(number: str, shown: str) -> None:
    assert mask_number(number) == shown


def test_a_push_is_the_same_event_for_the_same_notice() -> None:
    first, second = (notice_event(notice(channel="push")) for _ in range(2))
    assert (first.id, first.subject, first.data) == (second.id, second.subject, second.data)
    assert first.data["title"] == "Ça va?"
    assert first.data["cause"] == "order/o-1/5"
    assert "cause" not in notice_event(notice(cause="c" * 65)).data, "it would be too long for a frame"


# ---- the processor --------------------------------------------------------------------------------------------------


class FailingPort:
    """A port that raises the error that it is given."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.taken: list[str] = []

    async def send(self, notice: Notice) -> None:
        if self.error:
            raise self.error
        self.taken.append(notice.notice_id)


async def settled(port: FailingPort, attempt: int, **more: Any) -> dict[str, Any]:
    verdict = await Sender(port, attempts=3, seconds=1)(row(**more), attempt)
    assert isinstance(verdict, Done)
    return dict(verdict.columns)


async def test_an_accepted_mail_is_sent_and_its_outcome_published() -> None:
    columns = await settled(FailingPort(None), 1)
    assert (columns["status"], columns["told_at"] is not None) == ("sent", True)


async def test_an_attempt_that_fails_is_made_again_until_it_was_the_last() -> None:
    port = FailingPort(ConnectionError("away"))
    for attempt in (1, 2):
        with pytest.raises(ConnectionError):
            await settled(port, attempt)
    columns = await settled(port, 3)
    assert (columns["status"], columns["reason"], columns["tries"]) == ("failed", "ConnectionError: away", 3)
    assert columns["told_at"] is not None


async def test_a_permanently_refused_mail_is_not_retried() -> None:
    assert (await settled(FailingPort(UndeliverableError("550 no such user")), 1))["status"] == "failed"


async def test_an_unwanted_or_late_notice_is_skipped_without_an_event() -> None:
    columns = await settled(FailingPort(NoRecipientError("no_phone")), 1)
    assert (columns["status"], columns["reason"], columns["told_at"]) == ("skipped", "no_phone", None)
    port = FailingPort(None)
    columns = await settled(port, 1, too_late_at=NOW - timedelta(days=3650))
    assert (columns["status"], columns["reason"], port.taken) == ("skipped", "too_late", [])


async def test_a_notice_beyond_its_recipients_limit_is_skipped_and_reported() -> None:
    columns = await settled(FailingPort(RecipientLimitError("recipient_limit")), 1)
    assert (columns["status"], columns["reason"], columns["told_at"] is not None) == (
        "skipped",
        "recipient_limit",
        True,
    )


async def test_a_notice_beyond_the_total_limit_waits_however_often() -> None:
    for attempt in (1, 99):
        verdict = await Sender(FailingPort(TotalLimitError("many")), attempts=3, seconds=1)(row(), attempt)
        assert isinstance(verdict, Reschedule)


# ---- the catcher ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mailbox(tmp_path: Path) -> Iterator[Mailbox]:
    box = Mailbox(tmp_path / "mails.sqlite", keep=3)
    yield box
    box.close()


def put(mailbox: Mailbox, notice_id: str, **more: Any) -> None:
    mail = compose(notice(notice_id=notice_id, **more), SENDER, "ann@mail.example")
    mailbox.put("shop@shop.example", "ann@mail.example", bytes(mail), NOW)


def test_a_mail_is_kept_once_and_counted(mailbox: Mailbox) -> None:
    for notice_id in ("a", "b", "a", "a"):
        put(mailbox, notice_id)
    assert [(mail.message_id, mail.copies) for mail in mailbox.mails()] == [
        ("<b@shop.example>", 1),
        ("<a@shop.example>", 3),
    ]


def test_only_the_last_mails_are_kept(mailbox: Mailbox) -> None:
    for number in range(9):
        put(mailbox, f"n{number}")
    assert [mail.message_id for mail in mailbox.mails()] == [f"<n{number}@shop.example>" for number in (8, 7, 6)]


def test_mails_outlive_the_process(tmp_path: Path) -> None:
    for _ in range(2):
        box = Mailbox(tmp_path / "mails.sqlite")
        put(box, "a")
        box.close()
    box = Mailbox(tmp_path / "mails.sqlite")
    assert [mail.copies for mail in box.mails()] == [2]
    box.close()


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"Subject: =?x?q?", b"no header at all\r\n\r\nbody"])
def test_a_strange_mail_is_shown_all_the_same(raw: bytes, mailbox: Mailbox) -> None:
    mailbox.put("", "x", raw, NOW)
    pages = MailPages(mailbox)
    for path in ("/", "/mails.json", "/mails/1", "/mails/1/html"):
        page = pages(path)
        assert page is not None
        assert page.status == 200


def test_mails_are_bounded_by_size_too(tmp_path: Path) -> None:
    box = Mailbox(tmp_path / "mails.sqlite", max_bytes=50_000)
    for number in range(9):
        box.put("", "x", f"Message-ID: <{number}>\r\n\r\n{'x' * 20_000}".encode(), NOW)
    assert [mail.message_id for mail in box.mails()] == ["<8>", "<7>"]
    box.put("", "x", f"Message-ID: <big>\r\n\r\n{'x' * 60_000}".encode(), NOW)
    assert box.mails() == [], "a mail that alone is too large is not kept, and neither is an older one"
    box.close()


def test_a_mail_is_parsed_when_it_arrives_and_never_for_a_page(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    parse = ParsedMail.parse

    def count(raw: bytes) -> ParsedMail:
        parsed.append(raw)
        return parse(raw)

    monkeypatch.setattr(ParsedMail, "parse", count)
    put(mailbox, "a")
    pages = MailPages(mailbox)
    first = pages("/mails.json")
    for _ in range(3):
        for path in ("/", "/mails.json", "/mails/1", "/mails/1/html"):
            assert pages(path) is not None
    assert len(parsed) == 1
    again = pages("/mails.json")
    assert first is not None
    assert again is not None
    assert again.body is first.body, "made once for each change"
    put(mailbox, "b")
    changed = pages("/mails.json")
    assert changed is not None
    assert changed.body != first.body


def test_a_mailbox_of_an_earlier_version_is_shown(tmp_path: Path) -> None:
    mail = compose(notice(), SENDER, "ann@mail.example")
    old = sqlite3.connect(tmp_path / "mails.sqlite")
    old.execute(
        "CREATE TABLE mail (number INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT NOT NULL UNIQUE, sender TEXT NOT"
        " NULL, recipients TEXT NOT NULL, subject TEXT NOT NULL, received_at TEXT NOT NULL, raw BLOB NOT NULL,"
        " copies INTEGER NOT NULL DEFAULT 1)"
    )
    values = ("<n-1@shop.example>", "", "ann", "Ça va?", NOW.isoformat(), bytes(mail))
    old.execute(
        "INSERT INTO mail (message_id, sender, recipients, subject, received_at, raw) VALUES (?,?,?,?,?,?)", values
    )
    old.commit()
    old.close()
    box = Mailbox(tmp_path / "mails.sqlite")
    [shown] = box.mails()
    assert (shown.template, shown.cause, shown.text.strip()) == ("message", "order/o-1/5", "<b>Hello</b> & good-bye")
    assert "&lt;b&gt;Hello" in box.html(1)
    assert dict(box.headers(1))["Subject"] == "Ça va?"
    assert box.raw(1) == bytes(mail)
    box.close()


def test_the_mailbox_is_for_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Mailbox(tmp_path / "new/mails.sqlite").close()
    finally:
        os.umask(old)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new/mails.sqlite").stat().st_mode & 0o777 == 0o600


async def test_a_page_cannot_hide_a_mail_in_a_request_to_the_catchers_port(mailbox: Mailbox) -> None:
    protocol = partial(CatcherProtocol, MailHandler(mailbox), hostname="catcher")
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        mail = "EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nSubject: x\r\n\r\nx\r\n.\r\n"
        writer.write(f"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n{mail}".encode())
        assert b"421" in await reader.read()
        writer.close()
    finally:
        server.close()
    assert mailbox.mails() == []


async def test_the_pages_show_a_mail_and_run_nothing_of_it(mailbox: Mailbox) -> None:
    put(mailbox, "a", params={"title": "<script>alert(1)</script>", "body": "read me"})
    server = HealthServer("127.0.0.1", 0, live=lambda: None, ready=lambda: "not yet", pages=MailPages(mailbox))
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            listed = await client.get("/")
            assert "<script>" not in listed.text
            assert "&lt;script&gt;" in listed.text
            [mail] = (await client.get("/mails.json")).json()["mails"]
            assert (mail["text"].strip(), mail["template"], mail["cause"]) == ("read me", "message", "order/o-1/5")
            one = await client.get(f"/mails/{mail['number']}")
            assert "<iframe sandbox" in one.text
            page = await client.get(f"/mails/{mail['number']}/html")
            assert page.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
            assert "read me" in page.text
            assert [
                (await client.get(path)).status_code for path in ("/mails/99", "/nothing", "/livez", "/readyz")
            ] == [
                404,
                404,
                200,
                503,
            ]
            assert (await client.get("/readyz")).json() == {"status": "unavailable", "detail": "not yet"}
            assert "holdfast_" in (await client.get("/metrics")).text
            assert (await client.post("/livez")).status_code == 405
            head = await client.head("/livez")
            assert (head.status_code, head.content) == (200, b"")
    finally:
        await server.stop()


def test_words_of_a_notice_are_those_of_its_row() -> None:
    assert notice().text == render("message", row()["params"])
