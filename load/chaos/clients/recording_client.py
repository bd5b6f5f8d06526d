"""Load: shoppers that keep changing their carts during faults and record every request and answer.

They are as open-loop as a client may be: a new request is sent when its time has come, not when the last one was
answered, with a few open at most. So an outage is seen by all shoppers it affects.
"""

import asyncio
import random
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Final

from contracts.url_paths import encode_segment
from load.chaos.checks.observed_state import CartView
from load.chaos.clients import checkouts
from load.chaos.history import HistoryRecorder
from load.client import Shopper, new_id
from load.http_client import Guest, ShopClient, ShopUnavailableError
from load.protocol import OUTCOMES, RETRYABLE_CODES, Frame

MAX_OPEN: Final = 4
PAUSE_SECONDS: Final = 0.3
"""Mean pause between two requests of one shopper."""
UNKNOWN_SECONDS: Final = 3.0
"""Time without an answer after which a request is recorded as `info`."""
BACKOFF_DIVISOR: Final = 15.0
"""Divisor of backoff delays: thirty seconds become two."""
DUPLICATE_SHARE: Final = 0.1
VERBS: Final = {"add": 40, "set": 20, "remove": 12, "clear": 3, "check": 15, "cart": 10, "checkout": 14}
READS: Final = frozenset({"check", "cart"})
WAIT_SHARE: Final = 0.85
"""Share of checkouts that first wait for open requests; the others check out a cart that changes meanwhile."""
MAX_TRIES: Final = 3
"""How often a buyer tries a product that may be sold out."""
OTHER_TAB_SECONDS: Final = 10.0
CANCEL_SECONDS: Final = 5
SUCCESS_STATUSES: Final = frozenset({200, 201, 202})


class RecordingClient:
    """Shopper that records its requests and answers.

    `name` is its process in the history. `chance` decides everything it does except for its `cards`.
    """

    def __init__(
        self,
        name: str,
        shop: ShopClient,
        guest: Guest,
        recorder: HistoryRecorder,
        chance: random.Random,
        cards: Iterator[checkouts.Card],
    ) -> None:
        self.name = name
        self.shop = shop
        self.recorder = recorder
        self.chance = chance
        self.shopper = Shopper(shop, guest, listener=self._on_frame, chance=self._short_jitter)
        self._cards = cards
        self.requests: dict[str, Frame] = {}
        self.open_requests: set[str] = set()
        """Changes without an outcome, except for abandoned ones."""
        self._session = ""
        self.orders: set[str] = set()
        """Orders that this shopper has received frames of."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def user(self) -> str:
        """Owner of the cart."""
        return self.shopper.guest.user_id

    @property
    def cart_view(self) -> CartView:
        """Cart that the client shows now."""
        return CartView(self.shopper.state.version, dict(self.shopper.state.lines))

    @property
    def is_busy(self) -> bool:
        """True if a request is open or a task is running, such as a planned cancellation."""
        return bool(self.open_requests or self._tasks)

    def _short_jitter(self) -> float:
        """Return jitter from the lower end: the contract permits early reconnects, and the shop's speed is measured."""
        return self.chance.random() / BACKOFF_DIVISOR

    async def shop_until(self, products: Sequence[str], until: asyncio.Event) -> None:
        """Shop until `until` is set; requests that are open then stay open."""
        while not until.is_set():
            if len(self.open_requests) < MAX_OPEN:
                verb = self.chance.choices(list(VERBS), list(VERBS.values()))[0]
                if verb == "checkout" and self.shopper.state.lines:
                    if self.chance.random() < WAIT_SHARE:
                        await self._wait_for_open_requests()
                    self._start_task(self.check_out(self.chance.choice(products)))
                else:
                    self._start_request(self._new_request("add" if verb == "checkout" else verb, products))
            await asyncio.sleep(self.chance.expovariate(1 / PAUSE_SECONDS))

    async def _wait_for_open_requests(self) -> None:
        """Wait until open requests are answered, as a paying shopper does, or until a timeout."""
        end = asyncio.get_running_loop().time() + UNKNOWN_SECONDS
        while self.open_requests and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - a set has no event to wait for
            await asyncio.sleep(0.02)

    async def check_out_repeatedly(self, products: Sequence[str], tickets: list[int], pause: float) -> None:
        """Fill the cart and check out repeatedly, until the shared `tickets` are used up."""
        while tickets:
            tickets.pop()
            next_time = asyncio.get_running_loop().time() + self.chance.expovariate(1 / pause)
            for _ in range(MAX_TRIES):
                if not self.shopper.state.lines:
                    await self._send_and_wait(self._track(self._new_request("add", products)))
            await self.check_out(self.chance.choice(products))
            await asyncio.sleep(max(0.0, next_time - asyncio.get_running_loop().time()))

    async def check_out(self, product: str) -> None:
        """Place an order in a randomly chosen way; `product` is for an order without the cart."""
        way = checkouts.choose_kind(self.chance)
        if way == "two tabs":
            async with Shopper(self.shop, self.shopper.guest, chance=self._short_jitter) as other:
                frame = self._track(self._checkout(way, product))
                await asyncio.gather(
                    self._send_and_wait(frame), self._send_from_other_tab(other, {**frame, "id": new_id()})
                )
        elif way == "http":
            await self._post(self._checkout(way, product))
        else:
            await self._send_and_wait(self._track(self._checkout(way, product)))

    def _checkout(self, way: checkouts.CheckoutKind, product: str) -> Frame:
        card = checkouts.VALID_CARD if way in checkouts.REFUSED_KINDS else next(self._cards)
        return checkouts.checkout_frame(way, self.shopper.state, product, card, self.chance)

    async def _send_from_other_tab(self, other: Shopper, frame: Frame) -> None:
        self._track(frame)
        self._record_request("invoke", frame)
        try:
            await asyncio.wait_for(await other.send(frame), OTHER_TAB_SECONDS)
        except TimeoutError:
            pass
        finally:
            if frame["id"] in self.open_requests:  # this tab is closed and will never read the outcome
                self.open_requests.discard(frame["id"])
                self._record_request("info", frame, value={"gone": True})

    async def _post(self, frame: Frame) -> None:
        """Place the order by HTTP; its frames arrive nevertheless, under an id that the shop derives from the key."""
        self._record_request("invoke", frame, f="order")
        try:
            body = checkouts.http_body(frame)
            answer = await self.shop.request(
                "POST", "/v1/orders", token=self.shopper.guest.token, body=body, key=frame["id"]
            )
        except ShopUnavailableError as error:
            self._record_request("info", frame, f="order", value={"error": str(error)})
            return
        if answer.status in SUCCESS_STATUSES:
            self._record_request("ok", frame, f="order", value={"order_id": answer.body["order_id"]})
        else:
            self._record_request("fail", frame, f="order", value={"answered": answer.status, "problem": answer.problem})

    async def _cancel(self, order: str, after: float) -> None:
        await asyncio.sleep(after)
        frame = {"id": new_id(), "type": "cancel"}
        self._record_request("invoke", frame, value={"of": order})
        try:
            path = f"/v1/orders/{encode_segment(order)}/cancel"
            answer = await self.shop.request(
                "POST", path, token=self.shopper.guest.token, key=frame["id"], wait=CANCEL_SECONDS
            )
        except ShopUnavailableError as error:
            self._record_request("info", frame, value={"error": str(error)})
            return
        result = {"of": order, "answered": answer.status, "problem": answer.problem}
        self._record_request("ok" if answer.status in SUCCESS_STATUSES else "fail", frame, value=result)

    async def send_and_abort(self, products: Sequence[str]) -> None:
        """Send one frame on a separate connection and abort it at once; the outcome is never read."""
        id_ = new_id()
        frame = {"id": id_, "type": "add", "product": self.chance.choice(products), "quantity": 1}
        self.requests[id_] = frame
        async with Shopper(self.shop, self.shopper.guest, chance=self._short_jitter) as other:
            self._record_request("invoke", frame)
            try:
                await other.send(frame)
                other.abort()
            finally:
                self._record_request("info", frame, value={"gone": True})

    def abort(self) -> bool:
        """Abort the connection; return False if none was open."""
        return self.shopper.abort()

    async def read_cart(self, seconds: float) -> Frame | None:
        """Return the cart as the shopper reads it now, or `None` without an answer."""
        frame = {"id": new_id(), "type": "cart"}
        self.requests[frame["id"]] = frame
        self._record_request("invoke", frame)
        try:
            return await self.shopper.request("cart", id_=frame["id"], seconds=seconds)
        except TimeoutError:
            return None

    async def close(self) -> None:
        """Cancel all tasks and disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.shopper.close()

    def _new_request(self, verb: str, products: Sequence[str]) -> Frame:
        frame: dict[str, Any] = {"id": new_id(), "type": verb}
        if verb in {"add", "set", "remove", "check"}:
            frame["product"] = self.chance.choice(products)
        if verb in {"add", "set"}:
            frame["quantity"] = self.chance.randint(1 if verb == "add" else 0, 3)
        return frame

    def _start_request(self, frame: Frame) -> None:
        self._start_task(self._send_and_wait(self._track(frame)))

    def _track(self, frame: Frame) -> Frame:
        self.requests[frame["id"]] = frame
        if frame["type"] not in READS:
            self.open_requests.add(frame["id"])
        return frame

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_and_wait(self, frame: Frame) -> None:
        self._record_request("invoke", frame)
        answer = await self.shopper.send(frame)
        if frame["type"] not in READS and self.chance.random() < DUPLICATE_SHARE:
            await self.shopper.send(frame)
        try:
            await asyncio.wait_for(asyncio.shield(answer), UNKNOWN_SECONDS)
        except TimeoutError:
            self._record_request("info", frame)

    def _on_frame(self, frame: Frame) -> None:
        type_of_frame = frame.get("type", "")
        if type_of_frame == "welcome":
            self._session = frame["session"]
        request = self.requests.get(frame.get("id") or "")
        if type_of_frame == "order":
            self._add_order(frame["order_id"])
        if request is None:
            if type_of_frame in OUTCOMES or type_of_frame in {"cart", "expired", "resumed"}:
                self._record_frame("heard", type_of_frame, frame)
        elif (type_of_frame == "error" and frame["code"] not in RETRYABLE_CODES) or frame.get(
            "reason"
        ) == "payment_unavailable":
            self.open_requests.discard(frame["id"])
            self._record_frame("ok" if type_of_frame == "order" else "fail", request["type"], frame, request)
        elif type_of_frame in OUTCOMES or type_of_frame in {"availability", "cart"}:
            self.open_requests.discard(frame["id"])
            self._record_frame("ok", request["type"], frame, request)
        self._record_client_reads()

    def _record_client_reads(self) -> None:
        """Record the `cart` requests that the client is about to send by itself, as required after a gap."""
        for id_, frame in self.shopper.state.unresolved.items():
            if frame["type"] == "cart" and id_ not in self.requests:
                self.requests[id_] = frame
                self._record_request("invoke", frame)

    def _add_order(self, order: str) -> None:
        """Plan a cancellation for some of the orders seen for the first time."""
        if order not in self.orders:
            self.orders.add(order)
            if (after := checkouts.cancel_delay(self.chance)) is not None:
                self._start_task(self._cancel(order, after))

    def _record_frame(self, type_: Any, f: str, frame: Frame, request: Frame | None = None) -> None:
        self.recorder.record(
            self.name,
            type_,
            f,
            id=frame.get("id"),
            user=self.user,
            product=(request or frame).get("product"),
            session=self._session,
            value=dict(frame),
        )

    def _record_request(self, type_: Any, frame: Frame, value: Frame | None = None, *, f: str | None = None) -> None:
        self.recorder.record(
            self.name,
            type_,
            f or frame["type"],
            id=frame["id"],
            user=self.user,
            product=frame.get("product"),
            quantity=frame.get("quantity"),
            value=value or {},
        )
