"""Notices on real servers: one mail for each event, under replays, crashes and slow servers."""

import asyncio
import secrets
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from contracts import cart
from contracts import notifications as notices
from infrastructure.local.commands.dead_letters import DeadLetterEntry, load_dead_letters, settle
from infrastructure.process.failpoints import EXIT_KILLED
from tests.testkit.notifications import (
    HANDED_OVER,
    PUT_ASIDE,
    NoticeStack,
    Order,
    asked,
    held,
    notice_stack,
    product,
    responses,
    until_sent,
)
from tests.testkit.processes import PATIENCE
from tests.testkit.servers import Servers


@pytest.fixture(scope="module")
def here(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoticeStack]:
    with notice_stack(servers, tmp_path_factory.mktemp("notices")) as made:
        yield made


@pytest.fixture
def user() -> str:
    return f"u-{secrets.token_hex(4)}"


async def test_a_threefold_replay_makes_one_mail_an_event(here: NoticeStack, user: str) -> None:
    order = Order(user, phone="+44 20 7946 0123")
    await here.say(product("MUG", "BIG MUG, BLUE", 2), product("MUG", "MUG", 1))
    async with asyncio.timeout(PATIENCE):
        while not here.rows("SELECT 1 FROM product_name WHERE code = 'MUG'"):
            await asyncio.sleep(0.05)
    told = order.whole()
    for _ in range(3):
        await here.say(*told)
    expected = {"order_confirmed", "order_shipped", "order_delivered", "order_refunded"}
    await here.stored(user, sends=3 * 4)
    await here.settled(user, 4 + 3 + 4)
    before = here.audit()
    await here.say(*reversed(told))
    await here.stored(user, sends=4 * 4)
    await here.settled(user, 4 + 3 + 4)
    mails = here.mails(order.email)
    assert sorted(mail["template"] for mail in mails) == sorted(expected)
    assert {mail["copies"] for mail in mails} == {1}
    assert len({mail["message_id"] for mail in mails}) == len(mails)
    confirmed = next(mail for mail in mails if mail["template"] == "order_confirmed")
    assert "Total: £8.50" in confirmed["text"]
    assert "2 × Big mug, blue, £4.25 each" in confirmed["text"]  # noqa: RUF001
    after = here.audit()
    assert (before["ok"], after["ok"], after["violations"]) == (True, True, [])
    assert after["digest"] == before["digest"], "a replay changes nothing"
    numbers = here.rows("SELECT number FROM sms JOIN notice USING (notice_id) WHERE user_id = %s", user)
    assert [number for (number,) in numbers] == ["•••••••••123"] * 3
    pushed = [each for each in await here.heard(cart.RESPONSES, user) if each.type == cart.Notice.TYPE]
    assert {each.data["template"] for each in pushed} == expected
    sent = [each for each in await here.heard(notices.EVENTS, user) if each.type != notices.Preferred.TYPE]
    assert {(each.data["template"], each.data["channel"]) for each in sent} == here.notices(user).keys()
    assert {each.type for each in sent} == {notices.Sent.TYPE}


async def test_a_payment_that_failed_is_called_that(here: NoticeStack, user: str) -> None:
    """By mail only where the shopper has paid an order with this address before."""
    paid, order = Order(user), Order(user)
    await here.say(*paid.confirmed())
    await here.settled(user, 3)
    await here.say(*order.declined())
    await here.settled(user, 6)
    assert {key: status for key, status in here.notices(user).items() if key[0] == "payment_failed"} == {
        ("payment_failed", "email"): "sent",
        ("payment_failed", "sms"): "skipped",  # no number was left
        ("payment_failed", "push"): "sent",
    }
    [mail] = [each for each in here.mails(order.email) if each["template"] == "payment_failed"]
    assert "the payment was declined" in mail["text"]


async def test_a_dead_mail_server_holds_nothing_else_up_and_gets_everything_when_it_is_back(
    here: NoticeStack, user: str
) -> None:
    order = Order(user, phone="0113 496 0999")
    here.catcher.stop(signal.SIGKILL)
    try:
        await here.say(*order.confirmed())
        await until_sent(here, user, {("order_confirmed", "sms"): "sent", ("order_confirmed", "push"): "sent"})
        await _attempts(here, user, 2)
        assert here.notices(user)["order_confirmed", "email"] == "queued"
    finally:
        here.catcher.again()
    await here.settled(user, 3)
    assert [mail["copies"] for mail in here.mails(order.email)] == [1]


async def test_a_slow_mail_server_holds_nothing_else_up_and_gets_everything_in_time(
    here: NoticeStack, user: str
) -> None:
    order = Order(user, phone="0113 496 0999")
    here.catcher.kill(signal.SIGSTOP)
    try:
        await here.say(*order.confirmed())
        await until_sent(here, user, {("order_confirmed", "sms"): "sent", ("order_confirmed", "push"): "sent"})
        await _attempts(here, user, 2)  # the first one ran into its deadline
        assert here.notices(user)["order_confirmed", "email"] == "queued"
    finally:
        here.catcher.kill(signal.SIGCONT)
    await here.settled(user, 3)
    assert len(here.mails(order.email)) == 1


async def test_a_crash_before_a_mail_is_marked_sent_repeats_it_once_at_most(here: NoticeStack, user: str) -> None:
    order, deaths = Order(user), len(here.email.exits)
    here.email.arm(f"{HANDED_OVER}:1")
    await here.say(*order.confirmed())
    await here.settled(user, 3)
    assert here.email.exits[deaths:] == [EXIT_KILLED], here.email.log_tail()
    [mail] = here.mails(order.email)
    assert mail["copies"] == 2, "the second has the Message-ID of the first"
    told = [each for each in await here.heard(notices.EVENTS, user) if each.data["channel"] == "email"]
    assert len(told) == 1


async def test_a_failed_mail_is_sent_once_by_a_redrive_and_by_no_replay(here: NoticeStack, user: str) -> None:
    sent, order = Order(f"{user}-sent"), Order(user)
    await here.say(*sent.confirmed())
    await here.settled(sent.user, 3)
    deaths = len(here.worker.exits)
    here.worker.arm(f"{PUT_ASIDE}:1")
    here.catcher.stop(signal.SIGKILL)
    here.email.again(HOLDFAST_NOTICE_ATTEMPTS="2")
    try:
        await here.say(*order.confirmed())
        await here.settled(user, 3)
        assert here.worker.exits[deaths:] == [EXIT_KILLED], here.worker.log_tail()
        assert here.notices(user)["order_confirmed", "email"] == "failed"
        failed = [each for each in await here.heard(notices.EVENTS, user) if each.type == notices.Failed.TYPE]
        pushed = await _pushed(here, user)
        assert [each.data["channel"] for each in failed] == ["email"]
        assert order.email not in str(failed), "no event tells an address"
        [first] = await _letters(here, user, 1)
        assert (first.topic, first.reason) == (here.settings.topic(notices.REQUESTS), "failed")
        assert await settle(here.settings, [first], "redriven") == 1
        first, second = await _letters(here, user, 2)  # the server is still away: a new failure has a new dead letter
    finally:
        here.catcher.again()
        here.email.again(HOLDFAST_NOTICE_ATTEMPTS="1000")
    assert (first.settled, second.settled) == ("redriven", None)
    await here.at_rest()
    before = here.everything()
    await here.replay()
    assert await settle(here.settings, [first], "redriven") == 1  # as `--again` does
    await here.at_rest()
    assert here.everything() == before, "neither a replay nor a letter that was redriven before sends anything"
    assert here.mails(order.email) == []

    assert await settle(here.settings, [second], "redriven") == 1
    await until_sent(here, user, {("order_confirmed", "email"): "sent"})
    await here.at_rest()
    after = here.everything()
    await here.replay()  # the redriven requests lie there, too
    await here.at_rest()
    assert here.everything() == after
    assert [[mail["copies"] for mail in here.mails(each.email)] for each in (sent, order)] == [[1], [1]]
    assert len(here.rows("SELECT 1 FROM sms JOIN notice USING (notice_id) WHERE user_id = %s", user)) == 0
    assert len(set(pushed)) == 1
    assert await _pushed(here, user) == pushed, "neither a replay nor a redrive pushes a notice again"


async def test_a_user_without_mail_gets_no_mail_and_the_last_preference_counts(here: NoticeStack, user: str) -> None:
    now = datetime.now(UTC)
    await here.say(
        asked(user, notices.Prefer(user_id=user, email=False, sms=True, push=True), now),
        asked(user, notices.Prefer(user_id=user, email=True, sms=True, push=True), now - timedelta(hours=1)),
    )
    order = Order(user)
    async with asyncio.timeout(PATIENCE):
        while len(told := [e for e in await here.heard(notices.EVENTS, user) if e.type == notices.Preferred.TYPE]) < 2:
            await asyncio.sleep(0.1)
    assert {each.data["email"] for each in told} == {False}
    await here.say(*order.confirmed())
    await here.settled(user, 3)
    assert here.notices(user)["order_confirmed", "email"] == "muted"
    assert here.mails(order.email) == []


async def test_a_cart_is_warned_of_once_at_its_last_end(here: NoticeStack, user: str) -> None:
    other = f"{user}-other"
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=2, seconds=2)
    later = soon + timedelta(seconds=1)
    await here.say(
        *responses(user, held(user, 1, soon), held(user, 2, later), held(user, 1, soon)),
        *responses(other, held(other, 1, soon), cart.Removed(user_id=other, id="x", version=2)),
    )
    await here.settled(user, 2)
    assert here.notices(user) == {("cart_expiring", "push"): "sent", ("cart_expiring", "email"): "skipped"}
    [(cause,)] = here.rows("SELECT DISTINCT cause FROM notice WHERE user_id = %s", user)
    assert cause == f"cart/expiring/{later.isoformat()}"
    assert here.notices(other) == {}


async def test_a_forgotten_user_gets_no_old_notices(here: NoticeStack, user: str) -> None:
    order = Order(user)
    told = order.confirmed()
    await here.say(*told)
    await here.settled(user, 3)
    await here.say(asked(user, notices.Forget(user_id=user)))
    async with asyncio.timeout(PATIENCE):
        while here.rows("SELECT 1 FROM contact WHERE user_id = %s", user):
            await asyncio.sleep(0.1)
    await here.say(*told)  # a replay does not bring them back
    await here.say(asked(user, notices.Send(user_id=user, template="message", channel="push", cause="c1")))
    await here.settled(user, 4)
    assert here.rows("SELECT 1 FROM contact WHERE user_id = %s", user) == []
    assert here.rows("SELECT 1 FROM bought WHERE user_id = %s", user) == []
    assert here.rows("SELECT 1 FROM notice WHERE user_id = %s AND params <> '{}'", user) == []
    assert len(here.mails(order.email)) == 1


async def _letters(here: NoticeStack, user: str, count: int) -> list[DeadLetterEntry]:
    """The dead letters of a user's requests, the oldest first, when there are so many."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = [each for each in (await load_dead_letters(here.settings)).entries if each.key == user.encode()]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.1)


async def _pushed(here: NoticeStack, user: str) -> list[str]:
    """Return the ids of the events that report a pushed notice; a slow attempt may repeat one, with its id."""
    return [each.id for each in await here.heard(notices.EVENTS, user) if each.data.get("channel") == "push"]


async def _attempts(here: NoticeStack, user: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        query = "SELECT due_attempts FROM notice WHERE user_id = %s AND channel = 'email'"
        while not any(attempts >= count for (attempts,) in here.rows(query, user)):
            await asyncio.sleep(0.05)
