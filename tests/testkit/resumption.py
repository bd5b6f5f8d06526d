"""A shopper who loses connections, without a network: sessions of the edge, a client's rules, carts and inventory.

Every part is the real one, but for the line, which is two queues of frames, and Kafka, which is lists (`simulation`).
Actors take turns; the line of the client `cut` is cut after a number of frames on it, in either direction, and what was
under way then is lost or still delivered. `kept` is another socket of the same shopper that is never cut: the oracle.
"""

import json
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Literal

from contracts import cart
from contracts.envelope import Envelope
from load.protocol import CHANGES, OUTCOMES, ClientState, Frame
from rest_api.protocol.effects import Close
from rest_api.websocket.connections import ConnectionManager
from rest_api.websocket.send_queue import SendQueue
from rest_api.websocket.session import Session
from rest_api.websocket.stock_broadcaster import StockBroadcaster
from rest_api.websocket.user_state import UserLimits
from tests.testkit import simulation

USER = "ann"
Schedule = Literal["fair", "late acknowledgements", "long line", "slow inventory", "random"]
Fate = Literal["kept", "late", "lost"]
"""The fate of a request of the edge: acknowledged; kept, but too late for its acknowledgement; or lost."""

SCRIPT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cut", {"id": "c1", "type": "add", "product": "TEAPOT", "quantity": 2}),
    ("cut", {"id": "c2", "type": "set", "product": "MUG", "quantity": 3}),
    ("kept", {"id": "k1", "type": "add", "product": "MUG", "quantity": 1}),
    ("cut", {"id": "c3", "type": "add", "product": "TEAPOT", "quantity": 9}),
    ("cut", {"id": "c4", "type": "remove", "product": "MUG"}),
    ("cut", {"id": "c5", "type": "check", "product": "MUG"}),
    ("expire", {}),
    ("cut", {"id": "c6", "type": "add", "product": "TEAPOT", "quantity": 1}),
    ("kept", {"id": "k2", "type": "set", "product": "MUG", "quantity": 2}),
    ("cut", {"id": "c7", "type": "clear"}),
    ("cut", {"id": "c8", "type": "add", "product": "MUG", "quantity": 2}),
)
"""Held, refused, removed, emptied, expired, read, and another socket's changes between them."""


@dataclass(frozen=True)
class Cut:
    """A disconnect after `after` more frames; frames in flight up or down are still delivered, or lost."""

    after: int
    up: bool = False
    down: bool = False
    half_open: bool = False
    """The edge does not notice: the old socket stays where it was."""


class Wire(SendQueue):
    """The edge's way out of a socket, into a queue."""

    def __init__(self) -> None:
        super().__init__(_nowhere, lambda _: None)
        self.down: deque[str] = deque()
        self.up: deque[str] = deque()

    def put(self, frame: str) -> None:
        self.down.append(frame)

    def close(self, close: Close) -> None:
        raise AssertionError(close)


async def _nowhere(_: Any) -> None: ...


@dataclass
class Client:
    """A client by the contract's rules, as `load.client` has it, and what it saw."""

    name: str
    conversation: ClientState
    session: Session | None = None
    wire: Wire = field(default_factory=Wire)
    knows_cart: bool = False
    on_line: int = 0
    """Frames that went over its lines."""
    later: list[Frame] = field(default_factory=list)
    settled: Counter[str] = field(default_factory=Counter)
    seen: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    open: Counter[str] = field(default_factory=Counter)
    """How often an id was said on this line, less the outcomes that came on it."""

    def say(self, frame: Frame) -> None:
        self.conversation.record_sent(frame)
        if self.session is not None:
            self.send(frame)

    def send(self, frame: Frame) -> None:
        self.open[frame["id"]] += 1
        self.wire.up.append(json.dumps(frame))

    def hear(self, text: str) -> None:
        frame, before = json.loads(text), self.conversation.version
        step = self.conversation.apply(frame)
        assert self.conversation.version >= before, "the view goes back"
        self.settled.update(id_ for id_, _ in step.settled)
        if frame["type"] in OUTCOMES:
            told = {name: value for name, value in frame.items() if name != "replayed"}
            self.seen[frame["id"]].add(json.dumps(told, sort_keys=True))
            self.open[frame["id"]] -= 1
        elif frame["type"] == "pending":
            assert self.open[frame["id"]] > 0, "`pending` after its outcome"
        for said in step.send:
            self.send(said)
        self.later += [each.frame for each in step.resend]
        self.knows_cart |= frame["type"] == "cart"


class Kafka:
    """The connection manager's gateway: records are in the topic at once, acknowledgements when their turn comes."""

    fault = None

    def __init__(self, world: simulation.Simulation, fates: Iterator[Fate]) -> None:
        self.world = world
        self.fates = fates
        self.acknowledgements: deque[Callable[[], None]] = deque()

    async def publish(self, event: Envelope, done: Callable[[bool], None]) -> None:
        fate = next(self.fates, "kept")
        if fate != "lost":
            sent = event.model_copy(update={"time": self.world.now})
            self.world.topics[cart.REQUESTS.name].append(sent)
        self.acknowledgements.append(lambda: done(fate == "kept"))


class ResumptionRun:
    """One run of the script."""

    def __init__(
        self,
        schedule: Schedule = "fair",
        cuts: Iterable[Cut] = (),
        fates: Iterable[Fate] = (),
        seed: int = 0,
        *,
        script: Iterable[tuple[str, dict[str, Any]]] = SCRIPT,
    ) -> None:
        self.world = simulation.Simulation(0, simulation.Rules(faults=frozenset(), lost_writes=0))
        self.kafka = Kafka(self.world, iter(fates))
        self.hub = ConnectionManager(
            self.kafka,  # type: ignore[arg-type]  # two methods of the gateway are enough
            product_names=_no_names,
            currency="GBP",
            user_limits=UserLimits(changes=None, others=None),
            stock_broadcaster=StockBroadcaster(),
        )
        setattr(self.hub, "measure_turn", lambda: None)  # noqa: B010 - there is no event loop whose turns could be measured
        self.cuts = deque(cuts)
        self.script = deque(script)
        self.told = 0
        self.sessions = 0
        self.chance = random.Random(seed)
        self.schedule = schedule
        self.cut, self.kept = (Client(name, self._conversation(name)) for name in ("cut", "kept"))
        for client in (self.cut, self.kept):
            self._call(client)
        self._next_cut_at = self.cuts[0].after if self.cuts else None

    @staticmethod
    def _conversation(name: str) -> ClientState:
        numbers = iter(range(10_000))
        return ClientState(lambda: f"{name}-{next(numbers)}")

    # ---- the line ---------------------------------------------------------------------------------------------------

    def _call(self, client: Client) -> None:
        self.sessions += 1
        client.session = Session(f"s{self.sessions}", self.hub.user_state(USER), expires_at=time.time() + 3600)
        client.wire = Wire()
        client.open.clear()
        if client.knows_cart:
            client.send(client.conversation.resume())
        run(self.hub.connect(client.session, client.wire))

    def _cut(self, cut: Cut) -> None:
        client, old, wire = self.cut, self.cut.session, self.cut.wire
        assert old is not None
        if cut.up:
            while wire.up:
                self._edge_hears(old, wire)
        if cut.down:
            under_way, wire.down = wire.down, deque()
            for text in under_way:
                client.hear(text)
        wire.up.clear()
        client.session = None
        if not cut.half_open:
            self.hub.disconnect(old)

    def _edge_hears(self, session: Session, wire: Wire) -> None:
        run(self.hub.execute(session, session.receive(wire.up.popleft(), time.time())))

    # ---- actors: each does one thing, and says whether there was one to do ------------------------------------------

    def _follow_script(self) -> bool:
        if not self.script or not (self.cut.knows_cart and self.kept.knows_cart):
            return False
        who, frame = self.script.popleft()
        if who == "expire":
            self._let_time_pass(timedelta(minutes=16))
        else:
            (self.cut if who == "cut" else self.kept).say(frame)
        return True

    def _up(self, client: Client) -> bool:
        if client.session is None or not client.wire.up:
            return False
        client.on_line += 1
        self._edge_hears(client.session, client.wire)
        return True

    def _down(self, client: Client) -> bool:
        if client.session is None or not client.wire.down:
            return False
        client.on_line += 1
        client.hear(client.wire.down.popleft())
        return True

    def _reconnect(self) -> bool:
        if self.cut.session is not None:
            return False
        self._call(self.cut)
        return True

    def _acknowledge(self) -> bool:
        if not self.kafka.acknowledgements:
            return False
        self.kafka.acknowledgements.popleft()()
        return True

    def _carts(self) -> bool:
        return any(self.world.step(self.world.cart) for _ in range(40))  # it picks one of two topics by chance

    def _inventory(self) -> bool:
        return self.world.step(self.world.inventory)

    def _respond(self) -> bool:
        responses = self.world.topics[cart.RESPONSES.name]
        if self.told >= len(responses):
            return False
        event = responses[self.told]
        record = SimpleNamespace(
            key=event.subject.encode(), value=event.encode(), topic=cart.RESPONSES.name, partition=0, offset=self.told
        )
        self.told += 1
        run(self.hub.dispatch_responses([record]))
        return True

    # ---- a run ------------------------------------------------------------------------------------------------------

    def run(self) -> "ResumptionRun":
        """To the end of the script and until all is quiet."""
        ups, downs = [lambda: self._up(self.cut), lambda: self._up(self.kept)], [lambda: self._down(self.kept)]
        mine = lambda: self._down(self.cut)  # noqa: E731 - one of a list
        others = [self._follow_script, *ups, self._carts, self._respond, *downs, self._reconnect]
        rest = [*others, self._inventory]
        first, last = {
            "fair": ([*rest, mine, self._acknowledge], []),
            "late acknowledgements": ([*rest, mine], [self._acknowledge]),
            "long line": ([*rest, self._acknowledge], [mine]),
            "slow inventory": ([*others, mine, self._acknowledge], [self._inventory]),
            "random": ([*rest, mine, self._acknowledge], []),
        }[self.schedule]
        for _ in range(40):
            while self._turn(first) or self._turn(last):
                pass
            if not self._rest():
                return self
        raise AssertionError("it does not come to rest")

    def _turn(self, actors: list[Callable[[], bool]]) -> bool:
        if self.schedule == "random":
            actors = self.chance.sample(actors, len(actors))
        moved = False
        for actor in actors:
            moved |= actor()
            if self.cuts and self.cut.session is not None and self.cut.on_line >= self.cuts[0].after:
                self.cut.on_line = 0
                self._cut(self.cuts.popleft())
        return moved

    def all_but_inventory(self) -> None:
        """Move everything until only inventory, if any service, has something to do."""
        moved = True
        while moved:
            moved = False
            for client in (self.cut, self.kept):
                moved |= self._up(client) | self._carts() | self._acknowledge() | self._respond() | self._down(client)

    def _let_time_pass(self, time_: timedelta) -> None:
        self.world.now += time_
        self.world.knock()

    def _rest(self) -> bool:
        """All is quiet: time passes, what is due is done, and what was to be said again is. False when nothing is."""
        moved = False
        for seat in list(self.hub._connections.values()):
            effects = seat.session.tick(time.time() + 11)
            moved |= bool(effects)
            run(self.hub.execute(seat.session, effects))
        for client in (self.cut, self.kept):
            again, client.later = client.later, []
            for frame in again:
                if frame["id"] in client.conversation.unresolved:
                    moved = True
                    client.say(frame)
        return moved

    # ---- the verdict ------------------------------------------------------------------------------------------------

    def faults(self) -> Iterator[str]:
        """Yield the faults of the run."""
        holder = self.world.postgres.holders[USER]
        truth = (holder.revision, {line.product: line.quantity for line in holder.lines.values()})
        for client in (self.cut, self.kept):
            view = (client.conversation.version, client.conversation.lines)
            if view != truth:
                yield f"{client.name} sees {view}, and {truth} is true"
            if client.conversation.unresolved:
                yield f"{client.name} still waits for {list(client.conversation.unresolved)}"
        if self.script or self.cuts:
            yield f"not everything happened: {self.script} {self.cuts}"
        yield from self._outcomes()
        yield from self.world.judge_stock()

    def _outcomes(self) -> Iterator[str]:
        told: defaultdict[str, set[str]] = defaultdict(set)
        versions: set[int] = set()
        for event in self.world.topics[cart.RESPONSES.name]:
            message = cart.RESPONSE_REGISTRY.parse(event)
            if isinstance(message, cart.Held | cart.Refused | cart.Removed | cart.Expired):
                versions.add(getattr(message, "version", 0))
                name = message.id if not isinstance(message, cart.Expired) else "expired"
                told[name].add(message.model_copy(update={"replayed": False}).model_dump_json())
        for who, frame in SCRIPT:
            if frame.get("type") not in CHANGES:
                continue
            name = frame["id"]
            seen = self.cut.seen[name] | self.kept.seen[name]
            if len(told[name]) != 1 or len(seen) > 1:
                yield f"{name} has {len(told[name])} outcomes, {len(seen)} were seen"
            asked = self.cut if who == "cut" else self.kept
            if asked.settled[name] != 1:
                yield f"{name} was settled {asked.settled[name]} times"
        revision = self.world.postgres.holders[USER].revision
        if versions - {0} != set(range(1, revision + 1)):
            yield f"{revision} changes were made, and {sorted(versions)} were told"


async def _no_names(_: Iterable[str]) -> Mapping[str, str]:
    return {}


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run what awaits nothing that waits."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")
