# ruff: noqa: INP001 - Locust loads a file, not a package
# Locust is not a dependency of this project, so its types are unknown here.
# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator"
"""Locust script: shoppers of a running Holdfast shop, who open a WebSocket, add and remove, and time the answers.

    pip install locust websocket-client
    eval "$(.venv/bin/holdfast env)"
    locust -f load/locust/locustfile.py --headless --users 20 --spawn-rate 20 -t 10s

A Locust user waits for its answer before it continues: a closed loop. It shows what a number of people experience, not
how the shop behaves at a rate that does not depend on it; use `holdfast load` for that.
"""

import json
import os
import random
import time
import uuid
from typing import Any

import gevent
import websocket
from locust import User, constant_pacing, task
from locust.exception import StopUser

ANSWER_SECONDS = 10.0
LINES = 3
OUTCOMES = {"held", "refused", "removed", "error"}


class Shopper(User):
    """Shopper with a socket, a cart of up to three lines, and one change per second."""

    wait_time = constant_pacing(1)

    def on_start(self) -> None:
        """Create a guest and open the socket."""
        import requests  # after Locust has patched sockets

        host = (self.host or os.environ.get("HOLDFAST_HTTP_URL", "")).rstrip("/")
        if not host:
            raise StopUser('no shop is named: run `eval "$(holdfast env)"` first, or pass --host')
        guest = requests.post(f"{host}/v1/guests", timeout=10).json()
        page = requests.get(f"{host}/v1/products?limit=100&available_min=1", timeout=10).json()
        self.products = [item["code"] for item in page["items"]]
        if not self.products:
            raise StopUser("no product has units available")
        self.cart: list[str] = []
        self.socket = websocket.create_connection(
            host.replace("http", "ws", 1) + "/v1/stream",
            subprotocols=["holdfast.v1"],
            header={"Authorization": f"Bearer {guest['token']}"},
            timeout=ANSWER_SECONDS,
        )

    @task
    def change(self) -> None:
        """Add a product, or remove the oldest one if the cart is full."""
        if len(self.cart) < LINES:
            self.cart.append(random.choice(self.products))  # noqa: S311 - not a secret
            self.ask({"type": "add", "product": self.cart[-1], "quantity": 1})
        else:
            self.ask({"type": "remove", "product": self.cart.pop(0)})

    def on_stop(self) -> None:
        """Empty the cart and disconnect."""
        with gevent.Timeout(ANSWER_SECONDS, False):  # False: no exception on timeout
            self.ask({"type": "clear"})
        self.socket.close()

    def ask(self, frame: dict[str, Any]) -> None:
        """Send a frame, wait for its outcome, and report it to Locust under the frame's type."""
        request_id = str(uuid.uuid4())
        started = time.perf_counter()
        failure: Exception | None = None
        length = 0
        try:
            self.socket.send(json.dumps({"id": request_id, **frame}))
            while True:
                text = self.socket.recv()
                answer = json.loads(text)
                if answer.get("id") == request_id and answer["type"] in OUTCOMES:
                    break
            length = len(text)
            if answer["type"] == "error":
                failure = RuntimeError(answer["code"])
        except Exception as error:  # noqa: BLE001 - Locust counts any failure
            failure = error
        self.environment.events.request.fire(
            request_type="WS",
            name=frame["type"],
            response_time=(time.perf_counter() - started) * 1000,
            response_length=length,
            exception=failure,
            context={},
        )
