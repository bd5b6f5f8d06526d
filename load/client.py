"""A shopper as the shop sees one: a guest's token, one socket, frames out, outcomes in, whatever happens to the line.

`Shopper` keeps its socket open by the contract's rules: it calls again with jitter, resumes, repeats what the shop does
not know, and leaves alone what it may not retry.
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

from load.protocol import SUBPROTOCOL, Again, Conversation, Frame, Later, backoff, call_again
from load.shop import Guest, Shop, TurnedAwayError, told_pause

ABNORMAL: Final = 1006
ANSWER_SECONDS: Final = 10.0


class Shopper:
    """One shopper on one socket; use it as an async context manager.

    `listener` gets every frame as it comes in, also the doubles. `chance` is uniform in [0, 1).
    """

    def __init__(
        self,
        shop: Shop,
        guest: Guest,
        *,
        listener: Callable[[Frame], None] = lambda _frame: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.guest = guest
        self.conversation = Conversation(new_id)
        self._shop = shop
        self._listener = listener
        self._chance = chance
        self._socket: ClientConnection | None = None
        self._answers: dict[str, asyncio.Future[Frame]] = {}
        self._first_cart = asyncio.Event()
        self._line: asyncio.Task[None] | None = None
        self._repeats: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Return when the shop has told this shopper's cart."""
        self._line = asyncio.create_task(self._stay_on_the_line())
        self._line.add_done_callback(self._line_ended)
        cart = asyncio.create_task(self._first_cart.wait())
        try:
            await asyncio.wait({cart, self._line}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.hang_up()
            raise
        finally:
            cart.cancel()
        if self._line.done():
            self._line.result()
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Hang up."""
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close the socket; what has no answer then gets none."""
        tasks = {*self._repeats, *([self._line] if self._line else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break the line as a network does, without a word; it is called again by the contract's rules."""
        if self._socket is not None:
            self._socket.transport.abort()

    def _line_ended(self, line: asyncio.Task[None]) -> None:
        error = None if line.cancelled() else line.exception()
        for answer in self._answers.values():
            if not answer.done():
                if error:
                    answer.set_exception(error)
                else:
                    answer.cancel()

    async def ask(self, type_: str, *, id_: str | None = None, seconds: float = ANSWER_SECONDS, **fields: Any) -> Frame:
        """Say a frame and return its answer (`held`, `refused`, `removed`, `cart`, `availability` or `error`).

        Raises `TimeoutError` when there is none within `seconds`; the request may have been carried out then.
        """
        frame = {"id": id_ or new_id(), "type": type_, **fields}
        async with asyncio.timeout(seconds):
            return await asyncio.shield(await self.say(frame))  # another may wait for the same answer

    async def say(self, frame: Frame) -> asyncio.Future[Frame]:
        """Say `frame` now, or as soon as there is a line; the future is its first answer."""
        answer = self._answers.setdefault(frame["id"], asyncio.get_running_loop().create_future())
        if not answer.done():
            self.conversation.say(frame)
        await self._send(frame)
        return answer

    async def _send(self, frame: Frame) -> None:
        if self._socket is not None:
            with suppress(ConnectionClosed):  # the frame stays unresolved and is said again on the next line
                await self._socket.send(json.dumps(frame))

    async def _send_later(self, later: Later) -> None:
        await asyncio.sleep(later.seconds)
        if later.frame["id"] in self.conversation.unresolved:
            await self._send(later.frame)

    async def _stay_on_the_line(self) -> None:
        attempt = 0
        while True:
            got_through = False
            try:
                async with self._shop.door:
                    socket = await self._call()
                try:
                    got_through = await self._listen(socket)
                finally:
                    self._socket = None
                    await socket.close()
                again = call_again(
                    socket.close_code or ABNORMAL, socket.close_reason or "", attempt=attempt, chance=self._chance()
                )
                if again is None:
                    raise TurnedAwayError(f"closed with {socket.close_code} {socket.close_reason}")
            except (OSError, TimeoutError, InvalidHandshake) as error:
                again = self._refused(error, attempt)
            attempt = 0 if got_through else attempt + 1
            await asyncio.sleep(again.seconds)
            if again.new_token:
                self.guest = await self._shop.guest(self.guest.token)

    async def _call(self) -> ClientConnection:
        return await connect(
            self._shop.stream_url,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # a NewType over str
            additional_headers={"Authorization": f"Bearer {self.guest.token}"},
            compression=None,
            proxy=None,
            close_timeout=2,
        )

    def _refused(self, error: Exception, attempt: int) -> Again:
        """What to do about a call that did not get through."""
        if isinstance(error, InvalidStatus):
            status, headers = error.response.status_code, error.response.headers
            if status == 401:  # noqa: PLR2004 - the number is the name
                return Again(backoff(attempt, self._chance()), new_token=True)
            if status in {429, 503}:
                return Again(told_pause(headers.get("Retry-After"), backoff(attempt, self._chance())))
            if status < 500:  # noqa: PLR2004 - the number is the name
                raise TurnedAwayError(f"the shop answers {status} to the upgrade") from error
        return Again(backoff(attempt, self._chance()))

    async def _listen(self, socket: ClientConnection) -> bool:
        """Hear frames until the line is cut; true if the shop said anything at all."""
        heard = False
        with suppress(ConnectionClosed):
            if self._first_cart.is_set():
                await socket.send(json.dumps(self.conversation.resume()))
            self._socket = socket
            async for text in socket:
                heard = True
                frame = json.loads(text)
                step = self.conversation.hear(frame)
                self._listener(frame)
                for id_, answer in step.settled:
                    future = self._answers.pop(id_, None)
                    if future is not None and not future.done():
                        future.set_result(answer)
                for said in step.send:
                    await self._send(said)
                for later in step.later:
                    repeat = asyncio.create_task(self._send_later(later))
                    self._repeats.add(repeat)
                    repeat.add_done_callback(self._repeats.discard)
                if frame.get("type") == "cart":
                    self._first_cart.set()
        return heard


def new_id() -> str:
    """A random request id."""
    return str(uuid.uuid4())
