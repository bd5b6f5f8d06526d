"""Limits by recipient, unproven contacts and addresses that no mail can have, on real servers."""

import asyncio
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from contracts import cart
from contracts import notifications as notices
from infrastructure.local.commands.dead_letters import load_dead_letters
from infrastructure.storage import postgres
from notification_service.retention import DELETE_LIMIT, RetentionJob
from notification_service.store import SERVICE, SharedConnection
from tests.testkit.notifications import NoticeStack, Order, asked, notice_stack, responses
from tests.testkit.processes import PATIENCE
from tests.testkit.servers import Servers

LIMIT = 4
"""Mails, SMS, and notices of services to one recipient in an hour."""
LIMITS = {f"HOLDFAST_{kind}_LIMIT_HOUR": str(LIMIT) for kind in ("EMAIL", "SMS", "SERVICE")}


@pytest.fixture(scope="module")
def here(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoticeStack]:
    with notice_stack(servers, tmp_path_factory.mktemp("recipients"), more=LIMITS) as made:
        second = made.shop.add("notification_service.email", "email2")
        second.start()
        second.wait_ready()
        yield made


@pytest.fixture
def user() -> str:
    return f"u-{secrets.token_hex(4)}"


def reasons(here: NoticeStack, channel: str, *users: str) -> list[tuple[str, str]]:
    """Return status and reason of the notices of some users on a channel."""
    query = "SELECT status, reason FROM notice WHERE channel = %s AND user_id = ANY(%s) ORDER BY 1, 2"
    return [(status, reason) for status, reason in here.rows(query, channel, list(users))]


async def test_many_guests_send_one_address_no_more_than_its_limit(here: NoticeStack, user: str) -> None:
    """Orders of many guests, paid and cancelled, for spellings of one address and one number."""
    spellings = [
        f"{user}@mail.example",
        f"{user}@MAIL.example",
        f"{user}+{{}}@mail.example",
        f"{user.upper()}@mail.example",
    ]
    orders = [
        Order(
            f"{user}-{number}",
            phone=("+44 20 7946 0123", "+442079460123", "0044 (20) 7946 0123")[number % 3],
            address=spellings[number % 4].format(number),
        )
        for number in range(LIMIT + 4)
    ]
    users = [order.user for order in orders]
    await here.say(*(record for order in orders for record in order.paid_back()))
    for each in users:
        await here.settled(each, 3)
    for channel in ("email", "sms"):
        assert reasons(here, channel, *users) == [("sent", "")] * LIMIT + [("skipped", "recipient_limit")] * 4, channel
    assert reasons(here, "push", *users) == [("sent", "")] * len(users)
    mails = [mail for order in orders for mail in here.mails(order.email.replace("MAIL", "mail"))]
    assert len({mail["message_id"] for mail in mails}) == LIMIT
    skipped = [
        each
        for one in users
        for each in await here.heard(notices.EVENTS, one)
        if each.type == notices.Skipped.TYPE and each.data["channel"] == "email"
    ]
    assert [each.data["reason"] for each in skipped] == ["recipient_limit"] * 4
    assert "mail.example" not in str(skipped)
    before = here.everything()
    await here.replay()
    await here.at_rest()
    assert here.everything() == before, "a replay neither sends more nor takes a place"
    assert here.audit()["violations"] == []


async def test_a_notice_beyond_the_total_limit_waits(here: NoticeStack, user: str) -> None:
    order, total = Order(user, phone="+44 20 7946 0888"), "HOLDFAST_SMS_LIMIT_TOTAL_HOUR"
    [(taken,)] = here.rows("SELECT count(*) FROM recipient_claim WHERE channel = 'sms'")
    here.sms.again(**{total: str(taken or 1)})
    try:
        if not taken:
            await here.say(*Order(f"{user}-0", phone="+44 20 7946 0887").confirmed())
            await here.settled(f"{user}-0", 3)
        await here.say(*order.confirmed())
        async with asyncio.timeout(PATIENCE):
            while not here.rows("SELECT 1 FROM sms_queue WHERE user_id = %s AND due_at > now() + '9 s'", user):
                await asyncio.sleep(0.1)
        assert here.notices(user)["order_confirmed", "sms"] == "queued"
    finally:
        here.sms.again(**{total: "1000"})
    here.rows("UPDATE notice SET due_at = now() WHERE user_id = %s AND due_at IS NOT NULL", user)
    await here.settled(user, 3)
    assert here.notices(user)["order_confirmed", "sms"] == "sent"


async def test_notices_of_services_have_a_limit_of_their_own(here: NoticeStack, user: str) -> None:
    order = Order(user)
    await here.say(*order.confirmed())
    await here.settled(user, 3)
    sends = [
        notices.Send(user_id=user, template="message", channel="email", params={"title": "t"}, cause=f"news/{number}")
        for number in range(LIMIT + 3)
    ]
    await here.say(*(asked(user, send) for send in sends))
    await here.settled(user, 3 + len(sends))
    assert reasons(here, "email", user) == [("sent", "")] * (1 + LIMIT) + [("skipped", "recipient_limit")] * 3


@pytest.mark.parametrize("reason", ["unknown_product", "out_of_stock", "expired", "limit", "failed", "cancelled"])
async def test_an_order_that_was_never_paid_sends_no_mail_and_no_sms(here: NoticeStack, user: str, reason: str) -> None:
    order = Order(user, phone="+44 20 7946 0999")
    await here.say(*order.refused(reason))
    await here.settled(user, 1)
    assert here.notices(user) == {("order_cancelled", "push"): "sent"}
    assert here.mails(order.email) == []


async def test_a_declined_card_sends_nothing_to_an_unproven_address(here: NoticeStack, user: str) -> None:
    order = Order(user, phone="+44 20 7946 0999")
    await here.say(*order.declined())
    await here.settled(user, 3)
    assert reasons(here, "email", user) == reasons(here, "sms", user) == [("skipped", "unproven_contact")]
    assert here.notices(user)["payment_failed", "push"] == "sent"
    paid, other = Order(user), Order(user, address=f"{user}-other@mail.example")
    await here.say(*paid.confirmed(), *other.declined())
    await here.settled(user, 9)
    assert here.mails(other.email) == [], "an address is proven, not a user"


async def test_a_cart_sends_no_mail_to_the_address_of_an_order_that_was_refused(here: NoticeStack, user: str) -> None:
    await here.say(*Order(user).refused())
    await here.settled(user, 1)
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=2, seconds=1)
    held = cart.Held(user_id=user, id="h", product="MUG", quantity=1, line_quantity=1, expires_at=ends, version=1)
    await here.say(*responses(user, held))
    await here.settled(user, 3)
    assert reasons(here, "email", user) == [("skipped", "no_contact")]


async def test_a_notice_about_anothers_order_goes_to_nobody(here: NoticeStack, user: str) -> None:
    theirs = Order(f"{user}-b", phone="+44 20 7946 0999")
    await here.say(*theirs.confirmed())
    await here.settled(theirs.user, 3)
    mails = len(here.mails(theirs.email))
    for channel in ("email", "sms"):
        send = notices.Send(
            user_id=user, template="message", channel=channel, cause=f"c/{channel}", order_id=theirs.order_id
        )
        await here.say(asked(user, send))
    await here.settled(user, 2)
    for channel in ("email", "sms"):
        [(status, reason)] = reasons(here, channel, user)
        assert status == "failed"
        assert "another user" in reason
    assert here.rows("SELECT max(tries) FROM notice WHERE user_id = %s", user) == [(1,)]
    assert len(here.mails(theirs.email)) == mails


@pytest.mark.parametrize(
    "address", ["a,b@x.y", "?=@[=?.x", "john.@mail.example", "x@y>.org", "ann\u200b@mail.example", "ü@mail.example"]
)
async def test_an_address_of_an_earlier_version_fails_at_once_with_a_reason(
    here: NoticeStack, user: str, address: str
) -> None:
    order = Order(user, address=address)
    await here.say(*order.confirmed())
    await here.settled(user, 3)
    assert reasons(here, "email", user) == [("failed", "UndeliverableError: the address is not valid")]
    assert here.rows("SELECT tries FROM notice WHERE user_id = %s AND channel = 'email'", user) == [(1,)]
    async with asyncio.timeout(PATIENCE):
        while not any(each.key == user.encode() for each in (await load_dead_letters(here.settings)).entries):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("address", "sent_to"),
    [
        ("ann-{}@bücher.example", "ann-{}@xn--bcher-kva.example"),
        ('"ann {}"@mail.example', '"ann {}"@mail.example'),
        ('"ann@{}"@mail.example', '"ann@{}"@mail.example'),
    ],
)
async def test_international_domains_and_quoted_local_parts_are_delivered(
    here: NoticeStack, user: str, address: str, sent_to: str
) -> None:
    await here.say(*Order(user, address=address.format(user)).confirmed())
    await here.settled(user, 3)
    assert reasons(here, "email", user) == [("sent", "")]
    assert len(here.mails(sent_to.format(user))) == 1


async def test_an_erasure_removes_what_identifies_a_recipient(here: NoticeStack, user: str) -> None:
    await here.say(*Order(user, phone="+44 20 7946 0777").confirmed())
    await here.settled(user, 3)
    of_user = "FROM notice JOIN recipient_claim USING (notice_id) WHERE user_id = %s"
    assert len(here.rows(f"SELECT 1 {of_user}", user)) == 2
    await here.say(asked(user, notices.Forget(user_id=user)))
    async with asyncio.timeout(PATIENCE):
        while here.rows("SELECT 1 FROM contact WHERE user_id = %s", user):
            await asyncio.sleep(0.1)
    assert here.rows(f"SELECT 1 {of_user}", user) == []
    assert here.rows("SELECT 1 FROM paid_order WHERE user_id = %s", user) == []


async def test_retention_keeps_up_with_a_backlog(here: NoticeStack, user: str) -> None:
    """More rows than one statement deletes, of each table that shoppers can grow."""
    count = 2 * DELETE_LIMIT + 1
    with psycopg.connect(here.settings.postgres_url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "{here.settings.schema_name("notifications")}"'.encode())
        columns = "notice_id, user_id, cause, channel, template, params, accepted_at, status, partition, record_offset"
        old = "now() - interval '200 days'"
        for table, values in {
            f"notice ({columns})": f"%(user)s, n, 'push', 'message', '{{}}', {old}, 'sent', 0, n",
            "sms": f"'•••123', 'text', {old}",
            "recipient_claim": f"'email', 'digest', false, {old}",
            "paid_order": f"%(user)s, {old}",
        }.items():
            statement = f"INSERT INTO {table} SELECT %(user)s || n, {values} FROM generate_series(1, %(count)s) n"
            connection.execute(statement.encode(), {"user": user, "count": count})
    connection_ = SharedConnection(lambda: postgres.connect(here.settings, SERVICE))
    deleted = await RetentionJob(connection_, contact_days=180, notice_days=90).delete_old_rows()
    await connection_.close()
    assert deleted == 4 * count
    fresh = Order(user)
    await here.say(*fresh.confirmed())
    await here.settled(user, 3)
    assert len(here.notices(user)) == 3
