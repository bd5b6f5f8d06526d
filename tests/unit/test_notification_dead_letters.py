"""Permanently failed notices: a redrive of the dead letter can be distinguished from a replay of its request."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import pytest

from contracts import notifications as notices
from contracts.envelope import Envelope
from contracts.topics import Topic
from infrastructure.messaging import dead_letters
from notification_service.agents import NotificationAgents
from notification_service.store import Store
from tests.testkit.notifications import event

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ASKED = notices.Send(user_id="ann", template="order_shipped", params={"order": "Größe\t7"}, cause="c1", order_id="o1")


def row(request: notices.Send | None = ASKED, **more: Any) -> dict[str, Any]:
    """A notice as the job queue finds it; `request` is what asked for it, at 6/120."""
    return {
        "notice_id": "n1",
        "user_id": "ann",
        "cause": "c1",
        "channel": "email",
        "template": "order_shipped",
        "params": {},
        "accepted_at": NOW,
        "settled_at": NOW,
        "traceparent": None,
        "status": "failed",
        "reason": "away",
        "tries": 20,
        "request": None if request is None else event(request, "/orders", "ann", "ann/r1", NOW).encode().decode(),
        "partition": 6,
        "record_offset": 120,
        **more,
    }


async def told(row: dict[str, Any]) -> list[tuple[Topic, Envelope]]:
    """Return the events that a worker publishes for a notice."""
    found: list[tuple[Topic, Envelope]] = []

    async def publish(topic: Topic, events: Sequence[Envelope]) -> None:
        found.extend((topic, each) for each in events)

    async def connect() -> NoReturn:
        raise AssertionError("there is no need of a store")

    await NotificationAgents(Store(connect), publish, lambda topic: f"shop.{topic.name}", lambda: NOW).publish_outcome(
        row, 1
    )
    return found


async def redriven(row: dict[str, Any]) -> tuple[str, Envelope, notices.Request]:
    """Return the dead letter of a failed notice: its id, and the request of its redrive as the worker reads it."""
    (topic, letter), (events, outcome) = await told(row)
    assert (topic, events, outcome.type) == (notices.REQUESTS.dead_letter_topic, notices.EVENTS, notices.Failed.TYPE)
    read = dead_letters.decode(letter.encode())
    assert isinstance(read, dead_letters.DeadLetter)
    sent = Envelope.decode(read.original.key, read.original.value)
    return letter.id, sent, notices.REQUEST_REGISTRY.parse(sent)


async def test_a_notices_dead_letter_is_its_request_and_names_the_redriven_one() -> None:
    id_, sent, request = await redriven(row())
    assert id_ == "shop.notifications.requests.v1/6/120"
    assert request == ASKED.model_copy(update={"redrives": "6/120"})
    asked = event(ASKED, "/orders", "ann", "ann/r1", NOW)
    assert sent == asked.model_copy(update={"data": {**asked.data, "redrives": "6/120"}}), "else it is as it was"


async def test_a_redriven_notice_that_fails_again_has_another_dead_letter() -> None:
    before = ASKED.model_copy(update={"redrives": "6/120"})
    id_, _, request = await redriven(row(before, record_offset=121))
    assert id_ == "shop.notifications.requests.v1/6/121"
    assert request == ASKED.model_copy(update={"redrives": "6/121"})


@pytest.mark.parametrize("status", ["sent", "failed"])
async def test_a_sent_or_forgotten_notice_has_no_dead_letter(status: str) -> None:
    found = await told(row(None if status == "failed" else ASKED, status=status))
    assert [topic for topic, _ in found] == [notices.EVENTS]


@pytest.mark.parametrize("place", ["", "6", "6/", "/120", "6/120/1", "six/120", "-1/120"])
def test_a_redrive_names_the_position_of_its_dead_letter(place: str) -> None:
    with pytest.raises(ValueError, match="redrives"):
        notices.Send(user_id="ann", template="message", cause="c1", redrives=place)
