"""The audit of the topics of orders: each of its sentences, caused by one planted damage."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from contracts import orders
from contracts.envelope import Envelope
from infrastructure.audit.topic_auditor import AuditedTopic, AuditWindow
from infrastructure.messaging import dead_letters
from order_service.audit import TopicContents
from tests.testkit.order_model import IDS, NOON, ORDER, PLACE

WINDOW = AuditWindow(NOON, timedelta(seconds=30), timedelta(days=7))
LONG_AGO = NOON - timedelta(hours=1)
PLACED = orders.Placed(**IDS, version=1, status="placed", request_id="c1", cart_version=4)
OTHERWISE = PLACED.model_copy(update={"cart_version": 5})


@dataclass
class Record:
    """As the consumer gives it."""

    topic: str
    key: bytes
    value: bytes
    offset: int
    timestamp: int
    partition: int = 0


class Topics:
    """The topics of the orders and their dead letters; all is well with the one order on them."""

    def __init__(self) -> None:
        self.told = TopicContents(
            AuditedTopic("requests", orders.REQUEST_REGISTRY, WINDOW),
            AuditedTopic("events", orders.EVENT_REGISTRY, WINDOW, ignores_unknown=True),
        )
        self.offset = 0
        well = {"order_id": "well"}
        self.request(PLACE.model_copy(update=well))
        self.event(PLACED.model_copy(update=well))
        self.told.compare_stored(PLACED.model_copy(update=well))

    def request(self, message: orders.Request, at: datetime = LONG_AGO, accepted: datetime = LONG_AGO) -> Record:
        return self.put_request(_event(message, "/cart", accepted).encode(), message.order_id, at)

    def put_request(self, value: bytes, key: str = ORDER, at: datetime = LONG_AGO) -> Record:
        record = self._record("requests", key.encode(), value, at)
        self.told.add_request(record)
        return record

    def event(self, message: orders.Event) -> None:
        event = _event(message, "/orders", LONG_AGO)
        self.told.add_event(self._record("events", event.key, event.encode()))

    def put_aside(self, record: Record) -> None:
        original = dead_letters.Record(record.topic, record.partition, record.offset, record.key, record.value)
        letter = dead_letters.dead_letter_event(
            original, reason="failed", detail="", service="orders", attempts=1, now=LONG_AGO
        )
        self.told.requests.add_dead_letter(self._record("requests.dlq", letter.key, letter.encode()))

    def violations(self) -> list[str]:
        return [sentence for kind in self.told.violations() for sentence in kind]

    def _record(self, topic: str, key: bytes, value: bytes, at: datetime = LONG_AGO) -> Record:
        self.offset += 1
        return Record(topic, key, value, self.offset, int(at.timestamp() * 1000))


def _event(message: orders.Request | orders.Event, source: str, at: datetime) -> Envelope:
    return Envelope(
        id=f"{message.order_id}/c1",
        source=source,
        type=message.TYPE,
        subject=message.order_id,
        time=at,
        requestid="c1",
        data=message.model_dump(mode="json", exclude_none=True),
    )


def test_events_published_as_stored_are_correct() -> None:
    topics = Topics()
    topics.request(PLACE)
    for _ in range(2):
        topics.event(PLACED)
    assert topics.violations() != [], "nothing is stored yet"
    topics.told.compare_stored(PLACED)
    assert topics.violations() == []


def test_an_unreadable_request_without_a_dead_letter() -> None:
    topics = Topics()
    record = topics.put_request(b"{")
    assert topics.violations() == [
        f"requests/0/{record.offset} can't be read (not_json) and is not among the dead letters"
    ]
    topics.put_aside(record)
    assert topics.violations() == []


def test_an_event_that_was_published_in_two_ways() -> None:
    topics = Topics()
    topics.event(PLACED)
    topics.event(OTHERWISE)
    topics.told.compare_stored(PLACED)
    assert topics.violations() == [f"order {ORDER}: version 1 was published with two contents"]


def test_an_event_that_was_published_differently_than_stored() -> None:
    topics = Topics()
    topics.event(OTHERWISE)
    topics.told.compare_stored(PLACED)
    assert topics.violations() == [f"order {ORDER}: version 1 was published with another content than is stored"]


def test_a_published_event_that_is_not_stored() -> None:
    topics = Topics()
    topics.event(PLACED)
    topics.event(PLACED.model_copy(update={"version": 2}))
    topics.told.compare_stored(PLACED)
    assert topics.violations() == [f"order {ORDER}: version 2 was published, but is not stored"]


def test_an_order_that_was_to_be_placed_and_is_not_there() -> None:
    topics = Topics()
    record = topics.request(PLACE)
    assert topics.violations() == [f"order {ORDER} (requests/0/{record.offset}) was requested, but does not exist"]
    topics.put_aside(record)
    assert topics.violations() == []


def test_only_a_request_that_should_be_done_by_now_is_missed() -> None:
    topics = Topics()
    topics.request(PLACE, at=NOON)
    topics.request(PLACE, at=NOON - timedelta(days=7))
    topics.request(PLACE, accepted=NOON - timedelta(days=7))
    topics.request(orders.Cancel(**IDS))
    assert topics.violations() == []
