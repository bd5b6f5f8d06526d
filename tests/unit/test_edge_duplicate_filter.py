"""Repeated and old frames are marked `replayed`, whichever way they were replayed."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from contracts import cart
from contracts.envelope import Envelope
from contracts.inventory import Line, Money
from rest_api.protocol.server_frames import Server
from rest_api.websocket import duplicate_filter as duplicates
from rest_api.websocket.connections import ConnectionManager
from rest_api.websocket.duplicate_filter import MIN_AGE_SECONDS, RecentFrames
from rest_api.websocket.in_flight import Registration
from rest_api.websocket.session import Session
from rest_api.websocket.stock_broadcaster import StockBroadcaster
from rest_api.websocket.user_state import UserLimits
from tests.testkit.resumption import Wire

SERVER = TypeAdapter[Any](Server)
USER = "ann"
IDS: dict[str, Any] = {"user_id": USER, "id": "a1"}
HELD = cart.Held(
    **IDS, product="P", quantity=2, line_quantity=2, expires_at=datetime(2026, 11, 21, tzinfo=UTC), version=1
)
ORDER = cart.Order(**IDS, order_id="o1", status="paid", order_version=3)
LINE = Line(product="P", quantity=1, price=Money(amount=1, currency="GBP"))
TELLINGS: list[cart.Response] = [
    HELD,
    cart.Refused(**IDS, product="P", reason="out_of_stock", available=0),
    cart.Removed(**IDS, version=2),
    cart.Expired(user_id=USER, lines=(), version=3),
    ORDER,
    cart.Snapshot(user_id=USER, cart=cart.CartView(version=4, lines=(LINE,))),
    cart.Notice(user_id=USER, notice_id="n1", template="t", title="T", body="B"),
]


class Edge:
    """A connection manager with one socket, and the frames sent to it."""

    def __init__(self) -> None:
        async def publish(*_: Any) -> None: ...

        async def names(_: Iterable[str]) -> Mapping[str, str]:
            return {}

        gateway: Any = SimpleNamespace(fault=None, publish=publish)
        self.hub = ConnectionManager(
            gateway, product_names=names, currency="GBP", user_limits=UserLimits(), stock_broadcaster=StockBroadcaster()
        )
        self.wire = Wire()
        self.session = Session("s1", self.hub.user_state(USER), expires_at=2e9)

    async def enter(self) -> None:
        await self.hub.connect(self.session, self.wire)
        self.wire.down.clear()

    async def hear(self, message: cart.Response, *, ago: float = 0) -> list[dict[str, Any]]:
        """Return the frames for a record that is `ago` seconds old."""
        time = datetime.now(UTC) - timedelta(seconds=ago)
        data = message.model_dump(mode="json", exclude_none=True)
        event = Envelope(id="e", source="/cart", type=message.TYPE, subject=USER, time=time, data=data)
        record: Any = SimpleNamespace(key=event.key, value=event.encode(), topic="t", partition=0, offset=0)
        await self.hub.dispatch_responses([record])
        told = [json.loads(text) for text in self.wire.down]
        self.wire.down.clear()
        for frame in told:
            SERVER.validate_python(frame)
        return told


@pytest.fixture
async def edge() -> Edge:
    edge = Edge()
    await edge.enter()
    return edge


@pytest.mark.parametrize("message", TELLINGS)
async def test_a_repeated_frame_is_marked_replayed(edge: Edge, message: cart.Response) -> None:
    (first,), (second,), (third,) = [await edge.hear(message) for _ in range(3)]
    assert "replayed" not in first
    assert second == third == {**first, "replayed": True}


@pytest.mark.parametrize("message", TELLINGS)
async def test_an_old_response_is_marked_replayed(edge: Edge, message: cart.Response) -> None:
    (told,) = await edge.hear(message, ago=60)
    assert told["replayed"] is True


async def test_an_awaited_outcome_is_not_marked_however_late(edge: Edge) -> None:
    assert edge.session.user.register("a1", 0.0) is Registration.ACCEPTED
    (told,) = await edge.hear(HELD, ago=600)
    assert "replayed" not in told
    assert (await edge.hear(HELD, ago=600))[0]["replayed"] is True


async def test_the_next_step_of_an_order_is_not_marked(edge: Edge) -> None:
    await edge.hear(ORDER)
    (told,) = await edge.hear(ORDER.model_copy(update={"status": "confirmed", "order_version": 4}))
    assert "replayed" not in told


async def test_a_mark_is_not_set_twice(edge: Edge) -> None:
    for ago in (0, 0, 60):
        (told,) = await edge.hear(HELD.model_copy(update={"replayed": True}), ago=ago)
        assert list(told).count("replayed") == 1


def test_frames_are_remembered_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    told = RecentFrames()
    assert not told.seen("ann", b"x", 0.0)
    assert not told.seen("bob", b"x", 0.0), "another's is another"
    assert told.seen("ann", b"x", MIN_AGE_SECONDS)
    for round_ in (2, 3, 4):
        told.seen("ann", b"y", round_ * MIN_AGE_SECONDS)
    assert not told.seen("ann", b"x", 4 * MIN_AGE_SECONDS)
    monkeypatch.setattr(duplicates, "MAX_FRAMES", 10)
    for number in range(1000):
        told.seen("ann", b"%d" % number, 5 * MIN_AGE_SECONDS)
    assert len(told._current) + len(told._previous) <= 20
