"""The load: shoppers who change their carts all the time, whatever happens, and write down what they see.

They are open-loop as far as a client may be: a new request leaves when its time has come, not when the last one was
answered, up to a few at once. So a silence is seen by all whom it concerns.
"""

import asyncio
import random
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Final

from load.chaos import checkouts
from load.chaos.history import Recorder
from load.chaos.truth import Basket
from load.client import Shopper, new_id
from load.protocol import OUTCOMES, SAY_AGAIN, Frame
from load.shop import Guest, Shop, ShopAwayError

MOST_OPEN: Final = 4
PAUSE_SECONDS: Final = 0.3
"""Between two requests of one shopper, on average."""
UNKNOWN_SECONDS: Final = 3.0
"""After this long without an answer a request is written down as `info`."""
EAGERNESS: Final = 15.0
"""Thirty seconds of backoff become two."""
SAID_TWICE: Final = 0.1
VERBS: Final = {"add": 40, "set": 20, "remove": 12, "clear": 3, "check": 15, "cart": 10, "checkout": 14}
READS: Final = frozenset({"check", "cart"})
CALM: Final = 0.85
"""The share of checkouts that wait for what is still open; the others are of a cart that changes meanwhile."""
TRIES: Final = 3
"""How often a buyer looks for something that is not sold out."""
OTHER_TAB_SECONDS: Final = 10.0
CANCEL_SECONDS: Final = 5
CREATED: Final = frozenset({200, 201, 202})


class Witness:
    """One shopper. `name` is the process in the history; `chance` decides everything it does, but for its `cards`."""

    def __init__(
        self,
        name: str,
        shop: Shop,
        guest: Guest,
        recorder: Recorder,
        chance: random.Random,
        cards: Iterator[checkouts.Card],
    ) -> None:
        self.name = name
        self.shop = shop
        self.recorder = recorder
        self.chance = chance
        self.shopper = Shopper(shop, guest, listener=self._hear, chance=self._eager)
        self._cards = cards
        self.asked: dict[str, Frame] = {}
        self.open: set[str] = set()
        """Changes without an outcome, other than those that were given up."""
        self._session = ""
        self.orders: set[str] = set()
        """Those that this shopper has heard of."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def user(self) -> str:
        """Whose cart it is."""
        return self.shopper.guest.user_id

    @property
    def shows(self) -> Basket:
        """What this shopper's client shows now."""
        return Basket(self.shopper.conversation.version, dict(self.shopper.conversation.lines))

    @property
    def busy(self) -> bool:
        """Whether something is still open or under way, such as an order that will be cancelled in a moment."""
        return bool(self.open or self._tasks)

    def _eager(self) -> float:
        """Jitter from its lower end: the contract lets a client call again sooner, and the shop is to be measured."""
        return self.chance.random() / EAGERNESS

    async def live(self, products: Sequence[str], until: asyncio.Event) -> None:
        """Shop until told to stop; what is open then stays open."""
        while not until.is_set():
            if len(self.open) < MOST_OPEN:
                verb = self.chance.choices(list(VERBS), list(VERBS.values()))[0]
                if verb == "checkout" and self.shopper.conversation.lines:
                    if self.chance.random() < CALM:
                        await self._calm()
                    self._start(self.check_out(self.chance.choice(products)))
                else:
                    self._begin(self._wish("add" if verb == "checkout" else verb, products))
            await asyncio.sleep(self.chance.expovariate(1 / PAUSE_SECONDS))

    async def _calm(self) -> None:
        """Wait until what was asked for is there, as who wants to pay does; not for ever."""
        end = asyncio.get_running_loop().time() + UNKNOWN_SECONDS
        while self.open and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - a set has no event
            await asyncio.sleep(0.02)

    async def buy(self, products: Sequence[str], tickets: list[int], pause: float) -> None:
        """Put something into the cart and check out, until somebody has taken the last of the tickets."""
        while tickets:
            tickets.pop()
            next_time = asyncio.get_running_loop().time() + self.chance.expovariate(1 / pause)
            for _ in range(TRIES):
                if not self.shopper.conversation.lines:
                    await self._ask(self._noted(self._wish("add", products)))
            await self.check_out(self.chance.choice(products))
            await asyncio.sleep(max(0.0, next_time - asyncio.get_running_loop().time()))

    async def check_out(self, product: str) -> None:
        """Make an order of the cart in one way or another; `product` is for one without a cart."""
        way = checkouts.way(self.chance)
        if way == "two tabs":
            async with Shopper(self.shop, self.shopper.guest, chance=self._eager) as other:
                frame = self._noted(self._checkout(way, product))
                await asyncio.gather(self._ask(frame), self._in_another_tab(other, {**frame, "id": new_id()}))
        elif way == "http":
            await self._post(self._checkout(way, product))
        else:
            await self._ask(self._noted(self._checkout(way, product)))

    def _checkout(self, way: checkouts.Way, product: str) -> Frame:
        card = checkouts.GOOD if way in checkouts.NEVER_PAID else next(self._cards)
        return checkouts.checkout(way, self.shopper.conversation, product, card, self.chance)

    async def _in_another_tab(self, other: Shopper, frame: Frame) -> None:
        self._noted(frame)
        self._note("invoke", frame)
        try:
            await asyncio.wait_for(await other.say(frame), OTHER_TAB_SECONDS)
        except TimeoutError:
            pass
        finally:
            if frame["id"] in self.open:  # this tab is closed, and nobody will ask what became of it
                self.open.discard(frame["id"])
                self._note("info", frame, value={"gone": True})

    async def _post(self, frame: Frame) -> None:
        """By HTTP; the order's frames come all the same, under an id that the shop makes of the key."""
        self._note("invoke", frame, f="order")
        try:
            body = checkouts.posted(frame)
            answer = await self.shop.send(
                "POST", "/v1/orders", token=self.shopper.guest.token, body=body, key=frame["id"]
            )
        except ShopAwayError as error:
            self._note("info", frame, f="order", value={"error": str(error)})
            return
        if answer.status in CREATED:
            self._note("ok", frame, f="order", value={"order_id": answer.body["order_id"]})
        else:
            self._note("fail", frame, f="order", value={"answered": answer.status, "problem": answer.problem})

    async def _cancel(self, order: str, after: float) -> None:
        await asyncio.sleep(after)
        frame = {"id": new_id(), "type": "cancel"}
        self._note("invoke", frame, value={"of": order})
        try:
            path = f"/v1/orders/{order}/cancel"
            answer = await self.shop.send(
                "POST", path, token=self.shopper.guest.token, key=frame["id"], wait=CANCEL_SECONDS
            )
        except ShopAwayError as error:
            self._note("info", frame, value={"error": str(error)})
            return
        told = {"of": order, "answered": answer.status, "problem": answer.problem}
        self._note("ok" if answer.status in CREATED else "fail", frame, value=told)

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

    def cut(self) -> bool:
        """Break the line, if there is one to be broken."""
        was_open = self.shopper._socket is not None  # noqa: SLF001 - who cuts a line in life does not ask the client
        self.shopper.cut()
        return was_open

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

    def _wish(self, verb: str, products: Sequence[str]) -> Frame:
        frame: dict[str, Any] = {"id": new_id(), "type": verb}
        if verb in {"add", "set", "remove", "check"}:
            frame["product"] = self.chance.choice(products)
        if verb in {"add", "set"}:
            frame["quantity"] = self.chance.randint(1 if verb == "add" else 0, 3)
        return frame

    def _begin(self, frame: Frame) -> None:
        self._start(self._ask(self._noted(frame)))

    def _noted(self, frame: Frame) -> Frame:
        self.asked[frame["id"]] = frame
        if frame["type"] not in READS:
            self.open.add(frame["id"])
        return frame

    def _start(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, frame: Frame) -> None:
        self._note("invoke", frame)
        answer = await self.shopper.say(frame)
        if frame["type"] not in READS and self.chance.random() < SAID_TWICE:
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
        if told == "order":
            self._ordered(frame["order_id"])
        if asked is None:
            if told in OUTCOMES or told in {"cart", "expired", "resumed"}:
                self._heard("heard", told, frame)
        elif (told == "error" and frame["code"] not in SAY_AGAIN) or frame.get("reason") == "payment_unavailable":
            self.open.discard(frame["id"])
            self._heard("ok" if told == "order" else "fail", asked["type"], frame, asked)
        elif told in OUTCOMES or told in {"availability", "cart"}:
            self.open.discard(frame["id"])
            self._heard("ok", asked["type"], frame, asked)
        self._note_own_reads()

    def _note_own_reads(self) -> None:
        """Write down the carts that the client is about to ask for by itself, as the contract has it after a jump."""
        for id_, frame in self.shopper.conversation.unresolved.items():
            if frame["type"] == "cart" and id_ not in self.asked:
                self.asked[id_] = frame
                self._note("invoke", frame)

    def _ordered(self, order: str) -> None:
        """Who hears of an order of theirs for the first time may regret it."""
        if order not in self.orders:
            self.orders.add(order)
            if (after := checkouts.regrets(self.chance)) is not None:
                self._start(self._cancel(order, after))

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

    def _note(self, type_: Any, frame: Frame, value: Frame | None = None, *, f: str | None = None) -> None:
        self.recorder.note(
            self.name,
            type_,
            f or frame["type"],
            id=frame["id"],
            user=self.user,
            product=frame.get("product"),
            quantity=frame.get("quantity"),
            value=value or {},
        )
