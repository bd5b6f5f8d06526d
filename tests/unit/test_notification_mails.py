"""A mail as it is written, the catcher that takes it, and what a processor makes of a port that fails."""

import email
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import policy
from pathlib import Path
from typing import Any

import httpx
import pytest

from infrastructure.process.health import HealthServer
from infrastructure.storage.job_queue import Done
from notification_service.catcher.mailbox import Mailbox
from notification_service.catcher.pages import MailPages
from notification_service.email.mail import SmtpPort, compose
from notification_service.push.frames import notice_event
from notification_service.sender import ContactLookup, NoRecipientError, Notice, Sender, UndeliverableError
from notification_service.sms.simulated import mask_number
from notification_service.templates import render

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SENDER = "Holdfast <shop@shop.example>"


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
        "params": {"title": "Ça va?", "body": "<b>Hello</b> & good-bye"},
        **more,
    }


def notice(**more: Any) -> Notice:
    return Notice.from_row(row(**more))


# ---- the mail -------------------------------------------------------------------------------------------------------


def test_the_same_notice_is_the_same_mail() -> None:
    first, second = (compose(notice(), SENDER, "ann@mail.example") for _ in range(2))
    assert first["Message-ID"] == second["Message-ID"] == "<n-1@shop.example>"
    assert {name: first[name] for name in first} == {name: second[name] for name in second} | {
        "Content-Type": first["Content-Type"]  # its boundary is chance
    }


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


@pytest.mark.parametrize("address", ["a,b@mail.example", "ann@", "@", "<ann@mail.example>", "a\x00b@mail.example"])
def test_an_invalid_address_is_not_tried(address: str) -> None:
    with pytest.raises(UndeliverableError):
        compose(notice(), SENDER, address)


@pytest.mark.parametrize("url", ["http://mail.example", "smtp://", "mail.example:25"])
def test_a_mail_server_has_an_smtp_address(url: str) -> None:
    with pytest.raises(ValueError, match="HOLDFAST_SMTP_URL"):
        SmtpPort(url, SENDER, ContactLookup(_nobody), seconds=1)


def test_an_smtp_address_holds_a_name_and_a_password() -> None:
    port = SmtpPort("smtps://a%40b:p%3Ass@mail.example", SENDER, ContactLookup(_nobody), seconds=1)
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
