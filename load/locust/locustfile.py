# ruff: noqa: INP001 - Locust loads a file, not a package
# Locust is no dependency of ours, so its types are unknown here.
# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator"
"""Shoppers of a running Holdfast shop, by Locust: each opens the shop's WebSocket, adds, removes, and times it.

    pip install locust websocket-client
    locust -f load/locust/locustfile.py --headless --host http://127.0.0.1:8080 --users 20 --spawn-rate 20 -t 10s

A Locust user waits for its answer before it goes on: a closed loop. It shows what a number of people feel, not what the
shop does under a rate that does not care; `holdfast load` is for that.
"""

import json
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
    """One shopper with a socket, a cart of up to three lines, and one change a second."""

    wait_time = constant_pacing(1)

    def on_start(self) -> None:
        """Come in as a guest and open the socket."""
        import requests  # Locust patches sockets first

        host = (self.host or "http://127.0.0.1:8080").rstrip("/")
        guest = requests.post(f"{host}/v1/guests", timeout=10).json()
        page = requests.get(f"{host}/v1/products?limit=100&available_min=1", timeout=10).json()
        self.products = [item["code"] for item in page["items"]]
        if not self.products:
            raise StopUser("nothing is on sale")
        self.cart: list[str] = []
        self.socket = websocket.create_connection(
            host.replace("http", "ws", 1) + "/v1/stream",
            subprotocols=["holdfast.v1"],
            header={"Authorization": f"Bearer {guest['token']}"},
            timeout=ANSWER_SECONDS,
        )

    @task
    def change(self) -> None:
        """Put something in, or take the oldest out."""
        if len(self.cart) < LINES:
            self.cart.append(random.choice(self.products))  # noqa: S311 - a shopper's whim
            self.ask({"type": "add", "product": self.cart[-1], "quantity": 1})
        else:
            self.ask({"type": "remove", "product": self.cart.pop(0)})

    def on_stop(self) -> None:
        """Empty the cart and hang up."""
        with gevent.Timeout(ANSWER_SECONDS, False):  # gevent's way to say: no exception
            self.ask({"type": "clear"})
        self.socket.close()

    def ask(self, frame: dict[str, Any]) -> None:
        """Say a frame, wait for its outcome, and report it to Locust under the name of what was asked."""
        request_id = str(uuid.uuid4())
        begun = time.perf_counter()
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
        except Exception as error:  # noqa: BLE001 - whatever it is, Locust shall count it
            failure = error
        self.environment.events.request.fire(
            request_type="WS",
            name=frame["type"],
            response_time=(time.perf_counter() - begun) * 1000,
            response_length=length,
            exception=failure,
            context={},
        )
