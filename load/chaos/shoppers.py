"""The load: shoppers who change their carts all the time, whatever happens, and write down what they see.

They are open-loop as far as a client may be: a new request leaves when its time has come, not when the last one was
answered, up to a few at once. So a silence is seen by all whom it concerns.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

from load.chaos.history import Recorder
from load.client import Guest, Shop, Shopper, new_id
from load.protocol import OUTCOMES, SAY_AGAIN, Frame

MOST_OPEN: Final = 4
PAUSE_SECONDS: Final = 0.3
"""Between two requests of one shopper, on average."""
UNKNOWN_SECONDS: Final = 3.0
"""After this long without an answer a request is written down as `info`."""
EAGERNESS: Final = 15.0
"""Thirty seconds of backoff become two."""
SAID_TWICE: Final = 0.1
VERBS: Final = {"add": 40, "set": 20, "remove": 12, "clear": 3, "check": 15, "cart": 10}


class Witness:
    """One shopper. `name` is the process in the history; `chance` decides everything it does."""

    def __init__(self, name: str, shop: Shop, guest: Guest, recorder: Recorder, chance: random.Random) -> None:
        self.name = name
        self.shop = shop
        self.recorder = recorder
        self.chance = chance
        self.shopper = Shopper(shop, guest, listener=self._hear, chance=self._eager)
        self.asked: dict[str, Frame] = {}
        self.open: set[str] = set()
        """Changes without an outcome, other than those that were given up."""
        self._session = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def user(self) -> str:
        """Whose cart it is."""
        return self.shopper.guest.user_id

    def _eager(self) -> float:
        """Jitter from its lower end: the contract lets a client call again sooner, and the shop is to be measured."""
        return self.chance.random() / EAGERNESS

    async def live(self, products: Sequence[str], until: asyncio.Event) -> None:
        """Shop until told to stop; what is open then stays open."""
        while not until.is_set():
            if len(self.open) < MOST_OPEN:
                self._begin(self._wish(products))
            await asyncio.sleep(self.chance.expovariate(1 / PAUSE_SECONDS))

    async def hasty(self, products: Sequence[str]) -> None:
        """Say one frame on a line of its own and cut that at once: nobody will ask what became of it."""
        id_ = new_id()
        frame = {"id": id_, "type": "add", "product": self.chance.choice(products), "quantity": 1}
        self.asked[id_] = frame
        async with Shopper(self.shop, self.shopper.guest, chance=self._eager) as other:
            self._note("invoke", frame)
            try:
                await other.say(frame)
                other.cut()
            finally:
                self._note("info", frame, value={"gone": True})

    async def cart(self, seconds: float) -> Frame | None:
        """The cart as this shopper reads it now; none when nobody answers."""
        frame = {"id": new_id(), "type": "cart"}
        self.asked[frame["id"]] = frame
        self._note("invoke", frame)
        try:
            return await self.shopper.ask("cart", id_=frame["id"], seconds=seconds)
        except TimeoutError:
            return None

    async def leave(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.shopper.hang_up()

    def _wish(self, products: Sequence[str]) -> dict[str, Any]:
        verb = self.chance.choices(list(VERBS), list(VERBS.values()))[0]
        frame: dict[str, Any] = {"id": new_id(), "type": verb}
        if verb in {"add", "set", "remove", "check"}:
            frame["product"] = self.chance.choice(products)
        if verb in {"add", "set"}:
            frame["quantity"] = self.chance.randint(1 if verb == "add" else 0, 3)
        return frame

    def _begin(self, frame: Frame) -> None:
        self.asked[frame["id"]] = frame
        if frame["type"] not in {"check", "cart"}:
            self.open.add(frame["id"])
        task = asyncio.create_task(self._ask(frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, frame: Frame) -> None:
        self._note("invoke", frame)
        answer = await self.shopper.say(frame)
        if frame["type"] not in {"check", "cart"} and self.chance.random() < SAID_TWICE:
            await self.shopper.say(frame)
        try:
            await asyncio.wait_for(asyncio.shield(answer), UNKNOWN_SECONDS)
        except TimeoutError:
            self._note("info", frame)

    def _hear(self, frame: Frame) -> None:
        told = frame.get("type", "")
        if told == "welcome":
            self._session = frame["session"]
        asked = self.asked.get(frame.get("id") or "")
        if asked is None:
            if told in OUTCOMES or told in {"cart", "expired", "resumed"}:
                self._heard("heard", told, frame)
        elif told in OUTCOMES or told in {"availability", "cart"}:
            self.open.discard(frame["id"])
            self._heard("ok", asked["type"], frame, asked)
        elif told == "error" and frame["code"] not in SAY_AGAIN:
            self.open.discard(frame["id"])
            self._heard("fail", asked["type"], frame, asked)

    def _heard(self, type_: Any, f: str, frame: Frame, asked: Frame | None = None) -> None:
        self.recorder.note(
            self.name,
            type_,
            f,
            id=frame.get("id"),
            user=self.user,
            product=(asked or frame).get("product"),
            session=self._session,
            value=dict(frame),
        )

    def _note(self, type_: Any, frame: Frame, value: Frame | None = None) -> None:
        self.recorder.note(
            self.name,
            type_,
            frame["type"],
            id=frame["id"],
            user=self.user,
            product=frame.get("product"),
            quantity=frame.get("quantity"),
            value=value or {},
        )
