"""Where facts are born: one Postgres transaction per batch, in two trips around the pure fold.

Trip one takes the locks (shoppers in their order, then products in theirs) and reads what they cover; trip two writes
one row per key and commits. Both go out in pipeline mode, so a batch costs two round trips, however much it touches.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from infrastructure.crashpoints import crashpoint
from infrastructure.ids import derived
from infrastructure.postgres import Connection, load_queries
from inventory_service.arrays import NOTHING, documents, optional_texts, outcomes, scalars, texts
from inventory_service.messages import (
    STORED_OUTCOME,
    Check,
    Clear,
    Commit,
    Expire,
    Fail,
    Hold,
    Line,
    Lookup,
    Money,
    ReadReservation,
    ReleaseOrder,
    Remove,
    Restock,
    Sell,
)
from inventory_service.model import fold
from inventory_service.state import Answer, Command, Entry, Holder, Reserved, Rules, Shelf, State, is_due

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")

OPTIONS: Final = " ".join(
    f"-c {option}"
    for option in (
        # Each statement is a lookup by key. Left to itself the planner prefers a scan of the whole log, at the latest
        # when statistics are from a time when the tables were empty.
        "plan_cache_mode=force_generic_plan",
        "enable_seqscan=off",
        "enable_hashjoin=off",
        "enable_mergejoin=off",
        "jit=off",
        # A process that is stopped between the trips holds its rows until its session is ended. The idle timeout
        # doesn't fire after a pipeline; this one does, and it counts lock waits too.
        "transaction_timeout=5s",
        "lock_timeout=4s",
    )
)
"""Server settings for the connection of `PostgresStore`."""

LOG_KEPT: Final = timedelta(days=9)
"""How long outcomes are remembered: longer than any topic keeps a request."""


def expiry_id(user: str, due: datetime, revision: int) -> str:
    """The id of the expiry of a cart that is due at `due`: whoever finds it due gives it the same.

    The revision keeps two carts apart that are due at the same instant, as a clock that was set back can make them.
    """
    return derived(user, due.astimezone(UTC).isoformat(), str(revision), "expire")


class Decisions(NamedTuple):
    """What became of a batch: when, the answers, and how many units its products then had left."""

    now: datetime
    answers: list[Answer]
    available: Mapping[str, int]


class Store(Protocol):
    """Decides a batch in one transaction. When it raises, nothing is known; the same batch again is always right."""

    async def transact(self, batch: Sequence[Command]) -> Decisions:
        """Decide `batch` in its order."""
        ...


class MemoryStore:
    """The store's double: the same decisions over plain dictionaries, for tests and for reading."""

    def __init__(self, shelves: dict[str, Shelf], now: Callable[[], datetime], rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.now = now
        self.shelves = shelves
        self.holders: dict[str, Holder] = defaultdict(Holder)
        self.log: dict[tuple[str, str], Entry] = {}
        self.reserved: dict[str, Reserved] = {}

    async def transact(self, batch: Sequence[Command]) -> Decisions:
        """Decide `batch` in its order."""
        now = self.now()
        holders = {command.request.user_id: self.holders[command.request.user_id] for command in batch}
        state = State(now, holders, self.shelves, self.log, _expiry_ids(holders, now), self.rules, self.reserved)
        answers = fold(state, batch)
        return Decisions(now, answers, {code: shelf.available for code, shelf in self.shelves.items()})


class PostgresStore:
    """The store. `connect` gives a connection with `OPTIONS`; after any exception it is asked for another."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], rules: Rules | None = None) -> None:
        self.connect = connect
        self.rules = rules or Rules()
        self._connection: Connection | None = None

    async def transact(self, batch: Sequence[Command]) -> Decisions:
        """Decide `batch` in its order."""
        try:
            if self._connection is None:
                self._connection = await self.connect()
                self._connection.prepare_threshold = 0  # prepared at first use: the statements are always the same
            state = await self._lock(self._connection, batch)
            crashpoint("inventory.locked")
            answers = fold(state, batch)
            await self._write(self._connection, state)
        except BaseException:
            await self.close()  # whether COMMIT arrived is unknown, and the log knows
            raise
        return Decisions(state.now, answers, {code: shelf.available for code, shelf in state.shelves.items()})

    async def close(self) -> None:
        """Give the connection up; the next batch opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _lock(self, connection: Connection, batch: Sequence[Command]) -> State:
        values = _keys(batch)
        about_orders = ("reservations",) if values["orders"] != NOTHING else ()
        names = ("insert_missing_holders", "lock_holders", "decided_before", "open_holds", *about_orders, "lock_stock")
        async with connection.pipeline():
            await connection.execute("BEGIN")
            _, locked, log, holds, *orders, stock = [await connection.execute(QUERIES[name], values) for name in names]
            rows = await locked.fetchall()  # the first fetch sends everything; the others read what came with it
            now: datetime = rows[0][0]
            holders = {user: Holder(*cart) for _, user, *cart in rows}
            shelves = {
                code: Shelf(received, held, sold, Money(amount=price, currency=currency), version, for_sale)
                async for code, received, held, sold, price, currency, version, for_sale in stock
            }
            entries = {
                (user, id_): Entry(command, STORED_OUTCOME.validate_json(outcome))
                async for user, id_, command, outcome in log
            }
            async for user, code, quantity, amount, currency in holds:
                price = Money(amount=amount, currency=currency)
                holders[user].lines[code] = Line(product=code, quantity=quantity, price=price)
            reserved = _reserved([row for cursor in orders async for row in cursor])
        return State(now, holders, shelves, entries, _expiry_ids(holders, now), self.rules, reserved)

    async def _write(self, connection: Connection, state: State) -> None:
        """One row per key and one statement per table; empty ones are not sent. The hot stock rows come last."""
        holders = [(user, state.holders[user]) for user in state.changed_holders]
        lines = [(user, code, state.holders[user].lines.get(code)) for user, code in state.changed_lines]
        stock = [(code, state.shelves[code]) for code in {row.product for row in state.ledger}]
        plan: list[tuple[str, list[Any], tuple[Callable[[Iterable[Any]], str], ...]]] = [
            (
                "save_holders",
                [(user, h.revision, h.first_held_at, h.expires_at, h.expired) for user, h in holders],
                (texts, scalars, scalars, scalars, scalars),
            ),
            (
                "save_holds",
                [(user, code, x.quantity, x.price.amount, x.price.currency) for user, code, x in lines if x],
                (texts, texts, scalars, scalars, texts),
            ),
            ("drop_holds", [(user, code) for user, code, x in lines if not x], (texts, texts)),
            (
                "save_reservations",
                [(id_, o.user, o.purpose, o.revision) for id_, o in _of(state.reserved, state.new_orders)],
                (texts, texts, optional_texts, scalars),
            ),
            (
                "save_order_holds",
                [
                    (o.user, line.product, line.quantity, line.price.amount, line.price.currency, id_, o.state)
                    for id_, o in _of(state.reserved, state.changed_orders)
                    for line in o.lines
                ],
                (texts, texts, scalars, scalars, texts, texts, texts),
            ),
            (
                "append_ledger",
                [
                    (row.product, row.version, *row.key, row.cause, row.received, row.held, row.sold, row.order_id)
                    for row in state.ledger
                ],
                (texts, scalars, texts, texts, texts, scalars, scalars, scalars, optional_texts),
            ),
            (
                "append_log",
                [(*key, entry.content, entry.outcome, revision) for key, entry, revision in state.decided],
                (texts, texts, documents, outcomes, scalars),
            ),
            (
                "note_untold",
                state.untold,
                (texts, scalars, scalars),
            ),
            (
                "save_stock",
                [(code, s.received, s.held, s.sold, s.version) for code, s in stock],
                (texts, scalars, scalars, scalars, scalars),
            ),
        ]
        async with connection.pipeline():
            for name, rows, encoders in plan:
                if rows:
                    columns = zip(encoders, zip(*rows, strict=True), strict=True)
                    await connection.execute(QUERIES[name], [encode(column) for encode, column in columns])
            crashpoint("inventory.written")
            await connection.execute("COMMIT")


def _keys(batch: Sequence[Command]) -> dict[str, str]:
    """The keys of all rows that a batch may touch, as the parameters of trip one."""
    users, clears, codes, log = set(), set(), set(), []
    commits: dict[str, str] = {}
    orders, steps = set(), set()
    for command in batch:
        request = command.request
        users.add(request.user_id)
        match request:
            case Hold(product=product) | Remove(product=product):
                codes.add(product)
                log.append(command.key)
            case Check(product=product):
                codes.add(product)
            case Clear():
                clears.add(request.user_id)
                log.append(command.key)
            case Fail() | Expire():
                log.append(command.key)
            case Lookup(ids=ids):
                log.extend((request.user_id, id_) for id_ in ids)
            case Commit(order_id=order_id, lines=lines):
                codes.update(line.product for line in lines or ())
                commits[order_id] = request.user_id
                log.append(command.key)
            case Sell(order_id=order_id) | ReleaseOrder(order_id=order_id) | Restock(order_id=order_id):
                steps.add(order_id)
                log.append(command.key)
            case ReadReservation(order_id=order_id):
                orders.add(order_id)
    # What an order gets within the batch, and then sells or gives back in the same one, is in its cart yet.
    clears.update(user for order_id, user in commits.items() if order_id in steps)
    return {
        "users": texts(users),
        "clears": texts(clears),
        "codes": texts(codes),
        "of": texts(user for user, _ in log),
        "ids": texts(id_ for _, id_ in log),
        "orders": texts(orders.union(commits, steps)),
        "steps": texts(steps),
    }


def _reserved(rows: Iterable[tuple[Any, ...]]) -> dict[str, Reserved]:
    """The rows of `reservations`: one a line of each order, and one without a line of each that has none."""
    found: dict[str, Reserved] = {}
    for order_id, user, purpose, revision, code, quantity, amount, currency, state in rows:
        order = found.get(order_id) or Reserved(order_id, user, purpose=purpose, revision=revision)
        if code is not None:
            line = Line(product=code, quantity=quantity, price=Money(amount=amount, currency=currency))
            order = order._replace(lines=(*order.lines, line), state=state)
        found[order_id] = order
    return found


def _of(reserved: Mapping[str, Reserved], orders: Iterable[str]) -> list[tuple[str, Reserved]]:
    return [(order_id, reserved[order_id]) for order_id in orders]


def _expiry_ids(holders: Mapping[str, Holder], now: datetime) -> dict[str, str]:
    return {
        user: expiry_id(user, holder.expires_at, holder.revision)
        for user, holder in holders.items()
        if holder.expires_at and is_due(holder, now)
    }
