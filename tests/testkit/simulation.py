"""The main job without a broker: the real rules of carts and inventory under a scheduler that kills, repeats and loses.

A `Simulation` runs one seed. Topics are lists, Postgres is a `State` that a commit replaces at once, and each process
is made of the real handlers, run step by step: it can be killed at each `await`. The order service is not a process
here: any request about any order may arrive at any time, in any sequence. `run` returns what went wrong.
"""

import copy
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import coroutine
from typing import Any

from cart_service.agents import CartAgents
from cart_service.store import CartStore
from contracts import cart, ids, inventory, orders
from contracts.envelope import Envelope, Message, MessageRegistry, rfc3339
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import ReceivedMessage
from inventory_service import model
from inventory_service import state as states

USERS = ("ann", "bob")
PRODUCTS = ("TEAPOT", "MUG")
UNITS = 5
START = datetime(2026, 11, 21, tzinfo=UTC)
Step = Generator[None, None, None]


@coroutine
def _pause() -> Generator[None, None, None]:
    """A point at which a process may be killed."""
    yield


@dataclass
class Rules:
    """The checks that a planted bug removes, and the faults that are on."""

    faults: frozenset[str] = frozenset({"kill", "zombie", "replay", "expire"})
    lost_writes: float = 0.05
    reminders: bool = True
    settle: bool = True
    """An assignment bears another name when its table is recovered."""
    confirm: bool = True
    """A read is answered from the table only after a snapshot of this assignment."""
    send_on: bool = True
    """A request that is pending already is sent on again."""
    acknowledge_last: bool = True
    answer_after_commit: bool = True
    log: Callable[[], dict[states.LogKey, states.LogEntry]] = dict
    fold: Callable[..., list[states.Reply]] = model.fold


class Postgres:
    """Committed stock, carts and log; `transact` is one transaction."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        price = inventory.Money(amount=100, currency="GBP")
        self.shelves = {code: states.StockLevel(UNITS, 0, 0, price, 0) for code in PRODUCTS}
        self.holders: dict[str, states.CartState] = defaultdict(states.CartState)
        self.reserved: dict[str, states.OrderHolds] = {}
        self.log = rules.log()

    def transact(self, batch: Sequence[states.Command], now: datetime) -> list[states.Reply]:
        for command in batch:
            _ = self.holders[command.request.user_id]
        due = {user: holder.expires_at for user, holder in self.holders.items() if states.is_due(holder, now)}
        state = states.State(
            now=now,
            carts=self.holders,
            stock_levels=self.shelves,
            log=self.log,
            expiry_ids={user: expiry_id(user, at) for user, at in due.items() if at},
            order_holds=self.reserved,
        )
        return self.rules.fold(state, batch)

    def snapshot(self) -> Any:
        return copy.deepcopy((self.shelves, self.holders, self.reserved, self.log))

    def restore(self, kept: Any) -> None:
        self.shelves, self.holders, self.reserved, self.log = kept


def expiry_id(user: str, due: datetime) -> str:
    return ids.derive_id(user, due.isoformat(), "expire")


WRITTEN = 0.5
"""How often a cart worker has written its table before it goes on."""


class LossyTable:
    """A cart table in memory, whose changelog loses some writes; empty until it is recovered."""

    def __init__(self, world: "Simulation") -> None:
        self.world = world
        self.data: dict[bytes, bytes] = {}
        self.recovered = False
        self.losing = 0

    def recover(self) -> None:
        self.data = dict(self.world.changelog)
        self.recovered = True

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.data[key] = value
        if self.losing:  # a crashing producer loses its records together
            self.losing -= 1
        elif self.world.random.random() < self.world.rules.lost_writes:
            self.losing = self.world.random.randint(0, 12)
        else:
            self.world.changelog[key] = value

    def items(self) -> list[tuple[bytes, bytes]]:
        return list(self.data.items())


@dataclass
class Process:
    """A consumer of some topics: where it reads next, and what it is in the middle of."""

    positions: dict[str, int]
    handle: Callable[[str, Envelope], Step]
    running: dict[str, Step | None] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    """How far a zombie still reads; empty: to the end."""
    agents: CartAgents | None = None


class Simulation:
    """One shop, one seed, one history."""

    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        self.random = random.Random(seed)
        self.rules = rules or Rules()
        self.topics: dict[str, list[Envelope]] = defaultdict(list)
        self.now = START
        self.postgres = Postgres(self.rules)
        self.changelog: dict[bytes, bytes] = {}
        self.sent: dict[tuple[str, str], Envelope] = {}
        self.ordered: list[tuple[str, str]] = []
        """Shopper and checkout, as often as it was asked for."""
        self.steps: set[tuple[str, str]] = set()
        self.faults: list[str] = []
        self.told: dict[str, int] = defaultdict(int)
        self.told_before: dict[tuple[str, str], int] = {}
        self.counts: dict[str, int] = defaultdict(int)
        self.committed: dict[str, int] = defaultdict(int)
        self.generation = 0
        self.zombies: list[Process] = []
        self.cart = self.new_cart()
        self.inventory = self.new_inventory()

    # ---- processes --------------------------------------------------------------------------------------------------

    def new_cart(self) -> Process:
        self.generation += 1
        mine, table = str(self.generation), LossyTable(self)

        def generation() -> str:
            return mine if table.recovered or not self.rules.settle else f"{mine}-unsettled"

        agents = CartAgents(CartStore(table), self.publish, generation=generation, now=lambda: self.now)
        for _step in _steps(agents.retry_due()):  # the clock does not wait for the recovery
            pass
        table.recover()
        topics = (cart.REQUESTS.name, inventory.RESPONSES.name)
        process = Process({name: self.committed[name] for name in topics}, self.handle_cart(agents), agents=agents)
        if not self.rules.confirm:
            agents.confirmed_users = _AllUsers()  # type: ignore[assignment]
        return process

    def handle_cart(self, agents: CartAgents) -> Callable[[str, Envelope], Step]:
        def handle(topic: str, event: Envelope) -> Step:
            if topic == cart.REQUESTS.name:
                received = _received(event, cart.REQUEST_REGISTRY)
                known = {pending.id for pending in agents.carts.get(event.subject).pending}
                if not self.rules.send_on and event.requestid in known:
                    return
                yield from _steps(agents.on_requests([received]))
            else:
                yield from _steps(agents.on_inventory_responses([_received(event, inventory.RESPONSE_REGISTRY)]))
            if self.random.random() < WRITTEN:  # else the process may crash before it writes
                agents.carts.flush()

        return handle

    def new_inventory(self) -> Process:
        return Process({inventory.REQUESTS.name: self.committed[inventory.REQUESTS.name]}, self.handle_inventory)

    def handle_inventory(self, _: str, event: Envelope) -> Step:
        request = inventory.REQUEST_REGISTRY.parse(event)
        command = states.Command(event.requestid or "", event.time, request)
        if self.rules.answer_after_commit:
            answers, now = self.postgres.transact([command], self.now), self.now
            yield
            for answer in answers:
                yield from _steps(self.publish(inventory.RESPONSES, [_decided(answer, now)]))
            return
        before = self.postgres.snapshot()
        answers = self.postgres.transact([command], self.now)
        after = self.postgres.snapshot()
        self.postgres.restore(before)
        for answer in answers:
            yield from _steps(self.publish(inventory.RESPONSES, [_decided(answer, self.now)]))
        yield
        self.postgres.restore(after)

    async def publish(self, topic: Topic, events: Sequence[Envelope]) -> None:
        for event in events:
            await _pause()
            self.topics[topic.name].append(event)
            if topic is cart.RESPONSES:
                self.told[event.subject] = max(self.told[event.subject], event.data.get("version", 0))

    def step(self, process: Process) -> bool:
        """Let a process do one thing; whether there was one to do."""
        name = self.random.choice(list(process.positions))
        running = process.running.get(name)
        if running is None:
            position = process.positions[name]
            if position >= process.limits.get(name, len(self.topics[name])):
                return False
            running = process.running[name] = process.handle(name, self.topics[name][position])
            if not self.rules.acknowledge_last:
                process.positions[name] += 1
        try:
            next(running)
        except StopIteration:
            process.running[name] = None
            if self.rules.acknowledge_last:
                process.positions[name] += 1
        return True

    # ---- a history --------------------------------------------------------------------------------------------------

    def run(self, steps: int = 150) -> list[str]:
        """Live through a random history, come to rest, and say what went wrong."""
        for _ in range(steps):
            self.turn()
        for zombie in self.zombies:
            for _ in range(20):
                self.step(zombie)
        if self.random.random() < 0.5 and "kill" in self.rules.faults:
            self.cart = self.new_cart()
        self.settle()
        self.commit()
        if "kill" in self.rules.faults:
            self.cart = self.new_cart()
            self.settle()
        for user in USERS:
            self.ask(user, "last", cart.Read(user_id=user, session="last"))
        self.drain()
        return [*self.faults, *self.judge()]

    def turn(self) -> None:  # noqa: C901 - one line a kind of event
        roll, faults = self.random.random(), self.rules.faults
        if roll < 0.18:
            self.shop()
        elif roll < 0.24:
            self.look_after_an_order()
        elif roll < 0.55:
            self.step(self.cart)
        elif roll < 0.80:
            self.step(self.inventory)
        elif roll < 0.86:
            self.commit()
        elif roll < 0.89 and "kill" in faults:
            self.counts["kill"] += 1
            self.cart = self.new_cart()
        elif roll < 0.91 and "kill" in faults:
            self.inventory = self.new_inventory()
        elif roll < 0.93 and "zombie" in faults and len(self.zombies) < 2:
            self.make_zombie()
        elif roll < 0.96 and self.zombies:
            self.step(self.random.choice(self.zombies))
        elif roll < 0.975 and "replay" in faults:
            log = self.topics[
                self.random.choice([cart.REQUESTS.name, inventory.REQUESTS.name, inventory.RESPONSES.name])
            ]
            if log:
                self.counts["replay"] += 1
                log.append(self.random.choice(log))
        elif "expire" in faults:
            self.now += timedelta(minutes=self.random.choice((1, 5, 14, 16)))
            self.knock()

    def make_zombie(self) -> None:
        """The old process goes on for some records beside its successor."""
        self.counts["zombie"] += 1
        old = self.random.choice(["cart", "inventory"])
        process: Process = getattr(self, old)
        process.limits = {name: min(len(self.topics[name]), at + 3) for name, at in process.positions.items()}
        self.zombies.append(process)
        setattr(self, old, self.new_cart() if old == "cart" else self.new_inventory())

    def commit(self) -> None:
        for process in (self.cart, self.inventory):
            self.committed.update(process.positions)

    def shop(self) -> None:
        choice = self.random.random()
        if choice < 0.15 and self.sent:  # the same frame again
            again = self.random.choice(list(self.sent.values()))
            self.topics[cart.REQUESTS.name].append(again)
            return
        user, product = self.random.choice(USERS), self.random.choice(PRODUCTS)
        # Both shoppers use the same ids: a request is (user, id), never an id alone.
        id_ = f"r{sum(1 for each, _ in self.sent if each == user)}"
        quantity = self.random.randint(1, 3)
        message: Any = self.random.choices(
            (
                cart.Add(user_id=user, product=product, quantity=quantity),
                cart.Set(user_id=user, product=product, quantity=self.random.randint(0, 4)),
                cart.Remove(user_id=user, product=product),
                cart.Clear(user_id=user),
                cart.Read(user_id=user, session="s"),
                cart.Checkout,
            ),
            (6, 4, 2, 1, 3, 2),
        )[0]
        if message is cart.Checkout:
            message = self.checkout(user, id_)
            self.ordered.append((user, id_))
        if isinstance(message, cart.Read):
            id_ = f"read{len(self.topics[cart.REQUESTS.name])}"
        self.ask(user, id_, message)

    def checkout(self, user: str, id_: str) -> cart.Checkout:
        """Send a request about the cart as it is now. Some shoppers wait for their outcomes first; others do not."""
        if self.random.random() < 0.7:
            self.drain()
        version = self.postgres.holders[user].revision - self.random.choice((0, 0, 0, 1))
        return cart.Checkout(user_id=user, order_id=order_of(user, id_), version=max(0, version), **DELIVERY)

    def look_after_an_order(self) -> None:
        """One step of an order, whether it is its turn or not; now and then under an id of its own."""
        if not self.ordered:
            return
        held = [each for each in self.ordered if order_of(*each) in self.postgres.reserved]
        if not held and self.random.random() < 0.8:
            return  # mostly one waits for the commit
        user, id_ = self.random.choice(held or self.ordered)
        order = order_of(user, id_)
        step = self.random.choice(
            (
                inventory.Sell(user_id=user, order_id=order),
                inventory.Sell(user_id=user, order_id=order),
                inventory.ReleaseOrder(user_id=user, order_id=order, to="cart"),
                inventory.Restock(user_id=user, order_id=order, shipped=False),
                inventory.Restock(user_id=user, order_id=order, shipped=True),
            )
        )
        word = f"{type(step).__name__}{getattr(step, 'shipped', '')}"
        step_id = f"{order}/{word}{self.random.choice(('', '', ' again'))}"
        self.steps.add((user, step_id))
        self.topics[inventory.REQUESTS.name].append(_event(step, user, step_id, self.now, "/orders"))

    def ask(self, user: str, id_: str, message: Message) -> None:
        event = _event(message, user, id_, self.now, "/edge")
        if isinstance(message, cart.Read):
            self.told_before[user, id_] = self.told[user]
        else:
            self.sent[user, id_] = event
        self.topics[cart.REQUESTS.name].append(event)

    def knock(self) -> None:
        for user, holder in self.postgres.holders.items():
            if holder.expires_at and states.is_due(holder, self.now):
                expire = inventory.Expire(user_id=user, due=holder.expires_at)
                event = _event(expire, user, expiry_id(user, holder.expires_at), self.now, "/inventory")
                self.topics[inventory.REQUESTS.name].append(event)

    def drain(self) -> None:
        idle = 0
        while idle < 40:
            moved = [self.step(self.cart), self.step(self.inventory)]
            idle = 0 if any(moved) else idle + 1

    def settle(self) -> None:
        """Let everything be read, and all pending requests be retried."""
        self.drain()
        for _ in range(3 if self.rules.reminders else 0):
            self.now += timedelta(seconds=6)
            self.knock()
            if self.cart.agents:
                for _step in _steps(self.cart.agents.retry_due()):
                    pass
            self.drain()

    # ---- the verdict ------------------------------------------------------------------------------------------------

    def judge(self) -> Iterator[str]:
        yield from self._outcomes()
        yield from self._outcomes_of_others()
        yield from self._outcomes_of_steps()
        yield from self._last_reads()
        yield from self._shelves()
        yield from self._expired_early()
        yield from self._revisions()
        if "zombie" not in self.rules.faults:
            yield from self._stale_reads()

    def _outcomes(self) -> Iterator[str]:
        """Each request has exactly one outcome, however often the outcome is published."""
        outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)
        for event in self.topics[cart.RESPONSES.name]:
            response = cart.RESPONSE_REGISTRY.parse(event)
            if isinstance(response, cart.Held | cart.Refused | cart.Removed | cart.Order):
                told = response.model_copy(update={"replayed": False}).model_dump_json()
                outcomes[response.user_id, response.id].add(told)
        for key in self.sent:
            if len(outcomes[key]) != 1:
                yield f"{key} has {len(outcomes[key])} outcomes"

    def _outcomes_of_others(self) -> Iterator[str]:
        """Each grant made one version of its shopper's own cart, and no other request made that version."""
        made: dict[tuple[str, int], str | None] = {}
        for event in self.topics[inventory.RESPONSES.name]:
            decided = inventory.RESPONSE_REGISTRY.parse(event)
            if isinstance(decided.outcome, inventory.Held):
                user, version = decided.user_id, decided.outcome.version
                own = version <= decided.cart.revision
                if not own or made.setdefault((user, version), event.requestid) != event.requestid:
                    yield f"{event.requestid} of {user} was told what another was granted: version {version}"

    def _outcomes_of_steps(self) -> Iterator[str]:
        """So has each step of an order; and an order that was committed is so once, with the same lines."""
        outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)
        commits: dict[str, set[str]] = defaultdict(set)
        for event in self.topics[inventory.RESPONSES.name]:
            decided = inventory.RESPONSE_REGISTRY.parse(event)
            outcomes[decided.user_id, event.requestid or ""].add(decided.outcome.model_dump_json())
            if isinstance(decided.outcome, inventory.Committed):
                commits[decided.outcome.order_id].add(decided.outcome.model_dump_json())
        for key in self.steps:
            if len(outcomes[key]) != 1:
                yield f"{key} has {len(outcomes[key])} outcomes"
        for order, told in commits.items():
            if len(told) != 1:
                yield f"order {order} was committed in {len(told)} ways"

    def judge_stock(self) -> Iterator[str]:
        """Yield the faults of stock and carts alone."""
        yield from self._shelves()
        yield from self._revisions()

    def _last_reads(self) -> Iterator[str]:
        """At rest, a shopper reads what is held, and nothing is pending."""
        last: dict[str, cart.CartView] = {}
        for event in self.topics[cart.RESPONSES.name]:
            response = cart.RESPONSE_REGISTRY.parse(event)
            if isinstance(response, cart.Snapshot) and response.session == "last":
                last[response.user_id] = response.cart
        for user in USERS:
            holder = self.postgres.holders[user]
            if user not in last:
                yield f"the last read of {user} was not answered"
                continue
            if {line.product: line.quantity for line in last[user].lines} != _quantities(holder):
                yield f"the cart of {user} is not what is held"
            if last[user].version != holder.revision:
                yield f"the cart of {user} is at {last[user].version}, its holds at {holder.revision}"
            if last[user].pending:
                yield f"{user} has ghosts: {last[user].pending}"

    def _shelves(self) -> Iterator[str]:
        """Held units of a product are those of carts and orders, and never more than there are; sold units likewise."""
        for code, shelf in self.postgres.shelves.items():
            held = sum(_quantities(holder).get(code, 0) for holder in self.postgres.holders.values())
            held += self._of_orders(code, "PENDING")
            if shelf.held != held or not 0 <= held <= shelf.received - shelf.sold:
                yield f"{code}: {shelf.held} held on the shelf's row, {held} by carts and orders, of {shelf.received}"
            sold = self._of_orders(code, "COMMITTED") + shelf.received - UNITS  # returned units stay sold
            if shelf.sold != sold:
                yield f"{code}: {shelf.sold} sold on the shelf's row, {sold} to orders"

    def _of_orders(self, code: str, state: inventory.HoldState) -> int:
        lines = (line for order in self.postgres.reserved.values() if order.state == state for line in order.lines)
        return sum(line.quantity for line in lines if line.product == code)

    def _expired_early(self) -> Iterator[str]:
        """A cart ends no sooner than the last `held` before it said."""
        until: dict[str, dict[int, datetime]] = defaultdict(dict)
        expired: list[tuple[str, int, datetime]] = []
        for event in self.topics[inventory.RESPONSES.name]:
            decided = inventory.RESPONSE_REGISTRY.parse(event)
            if isinstance(decided.outcome, inventory.Held):
                until[decided.user_id][decided.outcome.version] = decided.outcome.expires_at
            if isinstance(decided.outcome, inventory.Expired) and not decided.replayed:
                expired.append((decided.user_id, decided.outcome.version, event.time))
        for user, version, at in expired:  # answers of two processes may swap; versions do not
            before = [each for each in until[user] if each < version]
            if before and at < until[user][max(before)]:
                yield f"the cart of {user} expired before its time"

    def _stale_reads(self) -> Iterator[str]:
        """A shopper who got a version, and then reads, reads none older. (Clients ignore the answers of a zombie.)"""
        answered: set[str] = set()
        for event in self.topics[cart.RESPONSES.name]:
            response = cart.RESPONSE_REGISTRY.parse(event)
            if isinstance(response, cart.Snapshot) and response.id and response.id not in answered:
                answered.add(response.id)
                told = self.told_before[response.user_id, response.id]
                if response.cart.version < told:
                    yield f"{response.user_id} was told of {told}, then asked, then read {response.cart.version}"

    def _revisions(self) -> Iterator[str]:
        """One revision, one cart."""
        carts: dict[tuple[str, int], str] = {}
        for event in self.topics[inventory.RESPONSES.name]:
            decided = inventory.RESPONSE_REGISTRY.parse(event)
            shown = decided.cart.model_dump_json()
            if carts.setdefault((decided.user_id, decided.cart.revision), shown) != shown:
                yield f"revision {decided.cart.revision} of {decided.user_id} is two carts"


class _AllUsers:
    def __contains__(self, _: str) -> bool:
        return True

    def add(self, _: str) -> None: ...

    def clear(self) -> None: ...


DELIVERY: dict[str, Any] = {
    "address": orders.Address(name="Ann", line1="1 Quay", city="Ayr", postal_code="KA7", country="GB"),
    "contact": orders.Contact(email="ann@example.org"),
    "payment": orders.Payment(token="tok_approve"),
}


def order_of(user: str, request_id: str) -> str:
    """The order that a checkout makes."""
    return ids.derive_id(user, request_id, "order")


def _quantities(holder: states.CartState) -> dict[str, int]:
    return {line.product: line.quantity for line in holder.lines.values()}


def _steps(work: Awaitable[None]) -> Step:
    yield from work.__await__()


def _event(message: Message, user: str, id_: str, now: datetime, source: str) -> Envelope:
    return Envelope.model_validate(
        {
            "id": f"{user}/{id_}/{message.TYPE.rpartition('.')[2]}",
            "source": source,
            "type": message.TYPE,
            "subject": user,
            "time": rfc3339(now),
            "requestid": id_,
            "data": message.model_dump(mode="json", exclude_none=True),
        }
    )


def _decided(answer: states.Reply, now: datetime) -> Envelope:
    request = answer.command.request
    message = inventory.Decided(
        user_id=request.user_id,
        outcome=answer.outcome,
        cart=answer.cart,
        replayed=answer.replayed,
        session=getattr(request, "session", None),
        epoch=getattr(request, "epoch", None),
    )
    return _event(message, request.user_id, answer.id, now, "/inventory")


def _received(event: Envelope, vocabulary: MessageRegistry[Any]) -> ReceivedMessage[Any]:
    return ReceivedMessage(event, vocabulary.parse(event), 0, 0)
