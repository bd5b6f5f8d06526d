"""WebSocket client of one shopper: sends frames, receives outcomes, and reconnects by the rules of the contract.

`Shopper` reconnects with jitter, resumes, resends requests that the shop does not know, and gives up where a retry is
not allowed.
"""

import asyncio
import json
import random
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from load.http_client import ConnectionRejectedError, Guest, ShopClient, retry_after_seconds
from load.protocol import SUBPROTOCOL, ClientState, DelayedResend, Frame, Reconnect, backoff_seconds, plan_reconnect

ABNORMAL_CLOSE_CODE: Final = 1006
ANSWER_TIMEOUT_SECONDS: Final = 10.0


class Shopper:
    """WebSocket client of one shopper; use it as an async context manager.

    `listener` is called with every frame received, including duplicates. `chance` returns numbers uniform in [0, 1).
    """

    def __init__(
        self,
        shop: ShopClient,
        guest: Guest,
        *,
        listener: Callable[[Frame], None] = lambda _frame: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.guest = guest
        self.state = ClientState(new_id)
        self._shop = shop
        self._listener = listener
        self._chance = chance
        self._socket: ClientConnection | None = None
        self._replies: dict[str, asyncio.Future[Frame]] = {}
        self._first_cart = asyncio.Event()
        self._connection_task: asyncio.Task[None] | None = None
        self._resends: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Connect, and return once the shop has sent the shopper's cart."""
        self._connection_task = asyncio.create_task(self._keep_connected())
        self._connection_task.add_done_callback(self._on_disconnected)
        cart = asyncio.create_task(self._first_cart.wait())
        try:
            await asyncio.wait({cart, self._connection_task}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.close()
            raise
        finally:
            cart.cancel()
        if self._connection_task.done():
            self._connection_task.result()
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Disconnect."""
        await self.close()

    async def close(self) -> None:
        """Close the socket and cancel all requests that have no answer yet."""
        tasks = {*self._resends, *([self._connection_task] if self._connection_task else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> bool:
        """Abort the connection without a close frame, as a network failure does. Return False if none was open.

        The client then reconnects by the rules of the contract.
        """
        if self._socket is None:
            return False
        self._socket.transport.abort()
        return True

    def _on_disconnected(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        for answer in self._replies.values():
            if not answer.done():
                if error:
                    answer.set_exception(error)
                else:
                    answer.cancel()

    async def request(
        self, type_: str, *, id_: str | None = None, seconds: float = ANSWER_TIMEOUT_SECONDS, **fields: Any
    ) -> Frame:
        """Send a frame and return its answer (`held`, `refused`, `removed`, `cart`, `availability` or `error`).

        Raise `TimeoutError` if there is no answer within `seconds`; the request may have been executed nevertheless.
        """
        frame = {"id": id_ or new_id(), "type": type_, **fields}
        async with asyncio.timeout(seconds):
            return await asyncio.shield(await self.send(frame))  # other callers may await the same answer

    async def send(self, frame: Frame) -> asyncio.Future[Frame]:
        """Send `frame` now, or once connected, and return a future of its first answer."""
        answer = self._replies.setdefault(frame["id"], asyncio.get_running_loop().create_future())
        if not answer.done():
            self.state.record_sent(frame)
        await self._write(frame)
        return answer

    async def _write(self, frame: Frame) -> None:
        if self._socket is not None:
            with suppress(ConnectionClosed):  # the frame stays unresolved and is resent after reconnecting
                await self._socket.send(json.dumps(frame))

    async def _resend_later(self, later: DelayedResend) -> None:
        await asyncio.sleep(later.seconds)
        if later.frame["id"] in self.state.unresolved:
            await self._write(later.frame)

    async def _keep_connected(self) -> None:
        attempt = 0
        while True:
            connected = False
            try:
                async with self._shop.request_slots:
                    socket = await self._connect()
                try:
                    connected = await self._receive_frames(socket)
                finally:
                    self._socket = None
                    await socket.close()
                again = plan_reconnect(
                    socket.close_code or ABNORMAL_CLOSE_CODE,
                    socket.close_reason or "",
                    attempt=attempt,
                    chance=self._chance(),
                )
                if again is None:
                    raise ConnectionRejectedError(
                        f"the shop closed the connection for good: {socket.close_code} {socket.close_reason}"
                    )
            except (OSError, TimeoutError, InvalidHandshake) as error:
                again = self._retry_after_error(error, attempt)
            attempt = 0 if connected else attempt + 1
            await asyncio.sleep(again.seconds)
            if again.new_token:
                self.guest = await self._shop.create_guest(self.guest.token)

    async def _connect(self) -> ClientConnection:
        return await connect(
            self._shop.stream_url,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # a NewType over str
            additional_headers={"Authorization": f"Bearer {self.guest.token}"},
            compression=None,
            proxy=None,
            close_timeout=2,
        )

    def _retry_after_error(self, error: Exception, attempt: int) -> Reconnect:
        """Return how to reconnect after a failed attempt; raise `ConnectionRejectedError` if that is pointless."""
        if isinstance(error, InvalidStatus):
            status, headers = error.response.status_code, error.response.headers
            if status == 401:  # noqa: PLR2004 - an HTTP status
                return Reconnect(backoff_seconds(attempt, self._chance()), new_token=True)
            if status in {429, 503}:
                return Reconnect(
                    retry_after_seconds(headers.get("Retry-After"), backoff_seconds(attempt, self._chance()))
                )
            if status < 500:  # noqa: PLR2004 - an HTTP status
                raise ConnectionRejectedError(f"the shop rejected the WebSocket upgrade with {status}") from error
        return Reconnect(backoff_seconds(attempt, self._chance()))

    async def _receive_frames(self, socket: ClientConnection) -> bool:
        """Handle frames until the connection is lost. Return True if any frame arrived."""
        received = False
        with suppress(ConnectionClosed):
            if self._first_cart.is_set():
                await socket.send(json.dumps(self.state.resume()))
            self._socket = socket
            async for text in socket:
                received = True
                frame = json.loads(text)
                step = self.state.apply(frame)
                self._listener(frame)
                for id_, answer in step.settled:
                    future = self._replies.pop(id_, None)
                    if future is not None and not future.done():
                        future.set_result(answer)
                for outgoing in step.send:
                    await self._write(outgoing)
                for later in step.resend:
                    resend = asyncio.create_task(self._resend_later(later))
                    self._resends.add(resend)
                    resend.add_done_callback(self._resends.discard)
                if frame.get("type") == "cart":
                    self._first_cart.set()
        return received


def new_id() -> str:
    """Return a random request id."""
    return str(uuid.uuid4())
