"""The REST requests that wait for an answer to come back from Kafka."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cart_service import messages as cart
from notification_service.messages import Preferred


@dataclass(frozen=True, slots=True)
class Answer:
    """What a REST request waited for: the message, and as bytes the frame that a socket would get, if any."""

    message: cart.Response | Preferred
    frame: bytes = b""


class Waiting:
    """Futures by user and request id."""

    def __init__(self) -> None:
        self._futures: defaultdict[tuple[str, str], list[asyncio.Future[Answer]]] = defaultdict(list)

    @contextmanager
    def wait(self, user_id: str, request_id: str) -> Iterator["asyncio.Future[Answer]"]:
        """A future for the answer to a request; begin before the request is sent."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._futures[user_id, request_id].append(future)
        try:
            yield future
        finally:
            waiting = self._futures.get((user_id, request_id), [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._futures.pop((user_id, request_id), None)

    def resolve(self, user_id: str, request_id: str, answer: Answer) -> None:
        """Give an answer to all who wait for it."""
        for future in self._futures.pop((user_id, request_id), ()):
            if not future.done():
                future.set_result(answer)

    def users(self) -> set[str]:
        """Those whose answers are waited for."""
        return {user_id for user_id, _ in self._futures}
