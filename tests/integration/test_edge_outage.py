"""What shoppers see while Kafka is away, and that it passes by itself. The broker is one of this test's own."""

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.integration.edge import Running, running_edge
from tests.servers import start_local


@pytest.fixture
def own() -> Iterator[tuple[Running, psutil.Process]]:
    """An edge and the process of its broker."""
    with tempfile.TemporaryDirectory(prefix="holdfast-outage-") as folder, start_local(Path(folder)) as servers:
        port = int(servers.kafka.rpartition(":")[2])
        children = psutil.Process().children(recursive=True)
        broker = next(child for child in children if _listens(child, port))
        with running_edge(servers, "outage.") as edge:
            try:
                yield edge, broker
            finally:
                broker.send_signal(signal.SIGCONT)


def _listens(process: psutil.Process, port: int) -> bool:
    return any(line.laddr.port == port and line.status == psutil.CONN_LISTEN for line in process.net_connections())


def _open(edge: Running, token: str) -> ClientConnection:
    return connect(
        f"{edge.url.replace('http', 'ws')}/v1/stream",
        additional_headers={"Authorization": f"Bearer {token}"},
        proxy=None,
    )


def _receive(line: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line.recv(timeout=20))
    return found


def test_while_kafka_is_away_nothing_new_is_accepted_and_nothing_is_lost(own: tuple[Running, psutil.Process]) -> None:
    edge, broker = own
    token = edge.guest()["token"]
    with _open(edge, token) as line, edge.client(token) as client:
        assert [_receive(line)["type"] for _ in range(2)] == ["welcome", "cart"]
        broker.suspend()
        add = {"id": "a1", "type": "add", "product": "P", "quantity": 2}
        line.send(json.dumps(add))
        error = _receive(line)
        assert (error["type"], error["id"], error["code"]) == ("error", "a1", "unavailable")
        assert error["retry_after"] >= 1

        refused = client.post("/v1/cart/items", json={"product": "P", "quantity": 2})
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/readyz").status_code == 503
        assert client.get("/v1/products").status_code == 200, "the catalogue can still be read"
        with _open(edge, edge.guest()["token"]) as other:
            with pytest.raises(ConnectionClosed) as caught:
                other.recv(timeout=20)
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1013, "retry_after=2")

        broker.resume()
        _until_ready(client)
        told = [_receive(line) for _ in range(2)]
        assert [frame["type"] for frame in told] == ["pending", "held"], "it was perhaps, and now it is"
        line.send(json.dumps(add))
        told = [_receive(line) for _ in range(2)]
        assert [(frame["type"], frame.get("version")) for frame in told] == [("pending", None), ("held", 1)]


def _until_ready(client: httpx.Client) -> None:
    until = time.monotonic() + 60
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
