"""The send queue of a socket: order, bounds, watched stock, and the close."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from rest_api.protocol.client_frames import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES
from rest_api.protocol.effects import Close
from rest_api.websocket.send_queue import SendQueue
from rest_api.websocket.stock_broadcaster import StockBroadcaster


class Reader:
    """A client that reads everything until `reads` is cleared."""

    def __init__(self) -> None:
        self.read: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] != "websocket.close":
            await self.reads.wait()
        self.read.append(message.get("text") or message)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_frames_are_sent_in_order_and_the_close_is_last() -> None:
    reader = Reader()
    outlet = SendQueue(reader, lambda _: None)
    outlet.start()
    for frame in ("a", "b", "c"):
        outlet.put(frame)
    outlet.close(Close(4400, "bad_json"))
    outlet.put("too late")
    await settle()
    assert reader.read == ["a", "b", "c", {"type": "websocket.close", "code": 4400, "reason": "bad_json"}]
    assert outlet.is_closing


async def test_a_client_that_is_64_frames_behind_is_closed() -> None:
    reader = Reader()
    outlet = SendQueue(reader, lambda _: None)
    outlet.start()
    await settle()
    reader.reads.clear()
    outlet.put("on its way")
    await settle()
    for number in range(MAX_QUEUED_FRAMES):
        outlet.put(str(number))
    assert not outlet.is_closing
    outlet.put("one too many")
    await settle()
    assert reader.read == [{"type": "websocket.close", "code": 4410, "reason": "retry_after=5"}]


async def test_a_client_that_is_32_kib_behind_is_closed() -> None:
    reader = Reader()
    outlet = SendQueue(reader, lambda _: None)
    outlet.start()
    await settle()
    reader.reads.clear()
    outlet.put("on its way")
    await settle()
    outlet.put("x" * (MAX_QUEUED_BYTES + 1))
    assert not outlet.is_closing, "one frame may be as large as it is"
    outlet.put("one too many")
    await settle()
    assert reader.read == [{"type": "websocket.close", "code": 4410, "reason": "retry_after=5"}]


async def test_frames_that_were_read_do_not_count() -> None:
    reader = Reader()
    outlet = SendQueue(reader, lambda _: None)
    outlet.start()
    for _ in range(10):
        outlet.put("x" * (MAX_QUEUED_BYTES // 2))
        await settle()
    reader.reads.clear()
    outlet.put("on its way")
    await settle()
    outlet.put("x" * MAX_QUEUED_BYTES)
    assert not outlet.is_closing
    reader.reads.set()
    await settle()
    assert len(reader.read) == 12
    outlet.stop()


async def test_a_slow_watcher_gets_the_newest_stock_and_is_not_closed() -> None:
    reader, ticker = Reader(), StockBroadcaster()
    outlet = SendQueue(reader, ticker.stock_frame)
    outlet.start()
    await settle()
    reader.reads.clear()
    ticker.update((f"P{number}", 1, 1) for number in range(500))
    ticker.watch(outlet, None)
    await settle()
    ticker.update((f"P{number}", 0, 2) for number in range(500))
    outlet.put("a frame goes before stock")
    reader.reads.set()
    for _ in range(600):
        await asyncio.sleep(0)
    assert reader.read[1] == "a frame goes before stock"
    assert len(reader.read) == 501
    assert all('"available":0' in frame for frame in reader.read[2:])


async def test_unwatched_stock_is_not_sent() -> None:
    reader, ticker = Reader(), StockBroadcaster()
    ticker.update([("P", 1, 1), ("Q", 1, 1)])
    outlet = SendQueue(reader, ticker.stock_frame)
    ticker.watch(outlet, ("P", "Q", "UNKNOWN"))
    ticker.unwatch(outlet, ("P",))
    outlet.start()
    await settle()
    assert reader.read == ['{"type":"stock","product":"Q","available":1,"version":1}']
    outlet.stop()


async def test_changes_are_sent_at_once_then_at_most_every_quarter_second() -> None:
    reader, ticker = Reader(), StockBroadcaster()
    outlet = SendQueue(reader, ticker.stock_frame)
    outlet.start()
    running = asyncio.create_task(ticker.run())
    ticker.watch(outlet, ("P",))
    await settle()
    ticker.update([("P", 9, 1), ("Q", 9, 1)])
    await settle()
    assert reader.read == ['{"type":"stock","product":"P","available":9,"version":1}']
    for version in range(2, 50):
        ticker.update([("P", 9 - version, version)])
        await settle()
    assert len(reader.read) == 1
    while len(reader.read) < 2:
        await asyncio.sleep(0.01)
    assert reader.read[1] == '{"type":"stock","product":"P","available":-40,"version":49}'
    ticker.update([("P", 100, 3)])
    assert ticker.stock_frame("P") == reader.read[1], "an older version changes nothing"
    running.cancel()
    outlet.stop()


async def test_a_closed_socket_leaves_no_watch() -> None:
    ticker = StockBroadcaster()
    outlet = SendQueue(Reader(), ticker.stock_frame)
    ticker.watch(outlet, ("P", "Q"))
    ticker.watch(outlet, None)
    ticker.unwatch(outlet, None)
    assert not ticker._watchers
    assert not ticker._watch_all
    assert not ticker._watched
