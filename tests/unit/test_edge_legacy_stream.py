"""The legacy WebSocket for one request: clients that stay silent, and clients that disconnect."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from uvicorn.protocols.utils import ClientDisconnected

from rest_api.http import legacy_stream
from tests.testkit.edge_session import make_app_state

SCOPE: dict[str, Any] = {"type": "websocket", "headers": [(b"user-id", b"ann")], "state": {}}


class Client:
    """A client that connects and sends nothing; with `leaves` it then disconnects."""

    def __init__(self, *, leaves: bool) -> None:
        self.leaves = leaves
        self.heard: list[MutableMapping[str, Any]] = []
        self._said = ["websocket.connect", *(["websocket.disconnect"] if leaves else ())]

    async def receive(self) -> MutableMapping[str, Any]:
        while not self._said:
            await asyncio.Event().wait()
        return {"type": self._said.pop(0)}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.leaves and message["type"] != "websocket.accept":
            raise ClientDisconnected
        self.heard.append(message)


async def test_a_silent_client_gets_an_error_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_stream, "FIRST_FRAME_SECONDS", 0.01)
    client = Client(leaves=False)
    await legacy_stream.LegacyStream(make_app_state())(SCOPE, client.receive, client.send)
    assert [message["type"] for message in client.heard] == ["websocket.accept", "websocket.send", "websocket.close"]
    answer = json.loads(client.heard[1]["text"])
    assert answer.keys() == {"request_id", "status_code", "message", "cart"}
    assert (answer["status_code"], answer["cart"], client.heard[2]["code"]) == (408, None, 1000)


async def test_a_client_that_disconnects_is_sent_nothing() -> None:
    client = Client(leaves=True)
    await legacy_stream.LegacyStream(make_app_state())(SCOPE, client.receive, client.send)
    assert [message["type"] for message in client.heard] == ["websocket.accept"]
