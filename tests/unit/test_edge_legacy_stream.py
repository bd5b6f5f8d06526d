"""WebSockets that are answered once: clients that stay silent, and clients that are gone before the answer."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from uvicorn.protocols.utils import ClientDisconnected

from rest_api.http import legacy_stream
from rest_api.websocket import endpoint
from tests.testkit.edge_session import make_app_state

SCOPE: dict[str, Any] = {"type": "websocket", "headers": [(b"user-id", b"ann")], "state": {}}


class Client:
    """A client that connects and sends nothing; with `leaves` it then disconnects, and a send fails with that error."""

    def __init__(self, leaves: Exception | None = None) -> None:
        self.leaves = leaves
        self.heard: list[MutableMapping[str, Any]] = []
        self._said = ["websocket.connect", *(["websocket.disconnect"] if leaves else ())]

    async def receive(self) -> MutableMapping[str, Any]:
        while not self._said:
            await asyncio.Event().wait()
        return {"type": self._said.pop(0)}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.leaves and message["type"] != "websocket.accept":
            raise self.leaves
        self.heard.append(message)


async def test_a_silent_client_gets_an_error_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_stream, "FIRST_FRAME_SECONDS", 0.01)
    client = Client()
    await legacy_stream.LegacyStream(make_app_state())(SCOPE, client.receive, client.send)
    assert [message["type"] for message in client.heard] == ["websocket.accept", "websocket.send", "websocket.close"]
    answer = json.loads(client.heard[1]["text"])
    assert answer.keys() == {"request_id", "status_code", "message", "cart"}
    assert (answer["status_code"], answer["cart"], client.heard[2]["code"]) == (408, None, 1000)


GONE = [
    ClientDisconnected(),
    RuntimeError("Unexpected ASGI message 'websocket.send', after sending 'websocket.close'."),
]
"""The errors of uvicorn for a client that has left, and for one that it has disconnected for a bad frame."""


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
async def test_a_client_that_disconnects_is_sent_nothing(error: Exception) -> None:
    client = Client(error)
    await legacy_stream.LegacyStream(make_app_state())(SCOPE, client.receive, client.send)
    assert [message["type"] for message in client.heard] == ["websocket.accept"]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
async def test_a_socket_too_many_that_is_gone_is_no_error(error: Exception) -> None:
    client = Client(error)
    await endpoint._close_unserved(client.send, client.receive, 5)
    assert client.heard == []
