"""A worker of notices that crashes at every failpoint in turn: nothing is lost, and no mail is sent twice."""

import asyncio
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from contracts import notifications as notices
from infrastructure.process.failpoints import EXIT_KILLED, VARIABLE
from tests.testkit.notifications import (
    AT_WORK,
    NoticeStack,
    Order,
    asked,
    held,
    notice_stack,
    responses,
    until_sent,
)
from tests.testkit.processes import PATIENCE
from tests.testkit.servers import Servers


@pytest.fixture
def here(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoticeStack]:
    with notice_stack(servers, tmp_path_factory.mktemp("notices")) as made:
        yield made


@pytest.fixture
def user() -> str:
    return f"u-{secrets.token_hex(4)}"


@pytest.mark.timeout(300)
async def test_a_worker_that_crashes_at_every_failpoint_in_turn(here: NoticeStack, user: str) -> None:
    """Each successor is armed for the next point, so that one preference, one order and one cart meet all of them."""
    order, deaths = Order(user), len(here.worker.exits)
    here.worker.arm(f"{AT_WORK[0]}:1")
    ends = datetime.now(UTC) + timedelta(hours=1)
    for number, point in enumerate([*AT_WORK[1:], None], start=1):
        here.worker.environment[VARIABLE] = f"{point}:1" if point else ""
        if number == 1:
            await here.say(asked(user, notices.Prefer(user_id=user, email=True, sms=True, push=True)))
        if number == 2:
            await here.say(order.place(), *responses(user, held(user, 1, ends)))
            async with asyncio.timeout(PATIENCE):
                while not here.rows("SELECT 1 FROM contact NATURAL JOIN cart WHERE user_id = %s", user):
                    await asyncio.sleep(0.05)
            await here.say(*order.confirmed())
        if point is None:
            here.rows("UPDATE cart SET due_at = now() WHERE user_id = %s", user)
        async with asyncio.timeout(PATIENCE):
            while len(here.worker.exits) < deaths + number or here.worker.health("/livez") == "silent":
                await asyncio.sleep(0.05)
    await until_sent(here, user, {("order_confirmed", "email"): "sent", ("cart_expiring", "push"): "sent"})
    await here.settled(user, 5)
    assert here.worker.exits[deaths:] == [EXIT_KILLED] * len(AT_WORK), here.worker.log_tail()
    mails = here.mails(order.email)
    assert sorted(mail["template"] for mail in mails) == ["cart_expiring", "order_confirmed"]
    assert {mail["copies"] for mail in mails} == {1}
    async with asyncio.timeout(PATIENCE):  # a worker that crashed after a warning left a lease, which must run out
        while here.audit()["violations"]:
            await asyncio.sleep(0.5)
