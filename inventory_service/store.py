"""The store: one Postgres transaction per batch, in two round trips around the pure fold. All facts are created here.

Round trip one takes the locks (users in sorted order, then products in sorted order) and reads the locked rows. Round
trip two writes one row per key and commits. Both use pipeline mode, so that a batch costs two round trips however many
rows it touches.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from contracts.ids import derive_id
from contracts.inventory import (
    STORED_OUTCOME_ADAPTER,
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
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.postgres import Connection, load_queries
from infrastructure.storage.statement_pipeline import StatementPipeline, number_placeholders
from inventory_service.model import fold
from inventory_service.pg_arrays import EMPTY_ARRAY, array_literals, array_parameters
from inventory_service.state import (
    CartState,
    Command,
    HoldingLimits,
    LogEntry,
    OrderHolds,
    Reply,
    State,
    StockLevel,
    TimeLimits,
    is_due,
    pending_units,
)

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")

READS: Final = (
    "insert_missing_holders",
    "lock_holders",
    "stored_outcomes",
    "open_holds",
    "order_holds",
    "lock_stock",
)
"""The statements of round trip one, in order."""
READS_WITHOUT_ORDERS: Final = tuple(name for name in READS if name != "order_holds")
WRITES: Final = (
    "save_holders",
    "save_holds",
    "delete_holds",
    "save_reservations",
    "save_order_holds",
    "append_ledger",
    "append_log",
    "insert_undelivered_expiries",
    "save_stock",
)
"""The statements of round trip two, in order: the most contended rows, of stock, come last."""
STATEMENTS: Final = {
    name: number_placeholders(query) for name, query in {"begin": "BEGIN", **QUERIES, "commit": "COMMIT"}.items()
}
"""All statements by name, and those that begin and end a transaction."""

STORE_OPTIONS: Final = " ".join(
    f"-c {option}"
    for option in (
        # Each statement is a lookup by key. With default settings the planner scans the whole log, at the latest when
        # its statistics date from a time when the tables were empty.
        "plan_cache_mode=force_generic_plan",
        "enable_seqscan=off",
        "enable_hashjoin=off",
        "enable_mergejoin=off",
        "jit=off",
        # A process that is stopped between the two round trips keeps its row locks until its session ends. The idle
        # timeout does not fire after a pipeline; this timeout does, and includes lock waits.
        "transaction_timeout=5s",
        "lock_timeout=4s",
    )
)
"""Server settings for the connection of `PostgresStore`."""
BACKGROUND_OPTIONS: Final = "-c statement_timeout=10s -c lock_timeout=2s -c enable_seqscan=off -c jit=off"
"""Server settings for the connections of background tasks."""

LOG_RETENTION: Final = timedelta(days=9)
"""How long outcomes are kept, which is longer than any topic keeps a request."""


def expiry_id(user: str, due: datetime, revision: int) -> str:
    """Return the id of the expiry of a cart that is due at `due`. All workers derive the same id.

    The revision distinguishes two carts of one user that are due at the same instant, which happens if a clock is set
    back.
    """
    return derive_id(user, due.astimezone(UTC).isoformat(), str(revision), "expire")


class BatchResult(NamedTuple):
    """The result of a batch: the time of its transaction, the replies, and the units left of its products."""

    now: datetime
    replies: list[Reply]
    available: Mapping[str, int]


class Store(Protocol):
    """A store that decides a batch in one transaction.

    When `transact` raises, it is unknown whether the transaction was committed. Repeating the batch is always safe.
    """

    async def transact(self, batch: Sequence[Command]) -> BatchResult:
        """Decide `batch` in its order."""
        ...


class MemoryStore:
    """In-memory double of the store: the same decisions over plain dictionaries, for tests."""

    def __init__(
        self,
        stock_levels: dict[str, StockLevel],
        now: Callable[[], datetime],
        time_limits: TimeLimits | None = None,
        holding_limits: HoldingLimits | None = None,
    ) -> None:
        self.time_limits = time_limits or TimeLimits()
        self.holding_limits = holding_limits or HoldingLimits()
        self.now = now
        self.stock_levels = stock_levels
        self.carts: dict[str, CartState] = defaultdict(CartState)
        self.log: dict[tuple[str, str], LogEntry] = {}
        self.order_holds: dict[str, OrderHolds] = {}

    async def transact(self, batch: Sequence[Command]) -> BatchResult:
        """Decide `batch` in its order."""
        now = self.now()
        carts = {command.request.user_id: self.carts[command.request.user_id] for command in batch}
        state = State(
            now,
            carts,
            self.stock_levels,
            self.log,
            _expiry_ids(carts, now),
            self.time_limits,
            self.order_holds,
            self.holding_limits,
            pending_units(self.order_holds.values()),
        )
        replies = fold(state, batch)
        return BatchResult(now, replies, {code: stock.available for code, stock in self.stock_levels.items()})


class PostgresStore:
    """The store. `connect` returns a connection with `STORE_OPTIONS`; any exception closes the connection."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        time_limits: TimeLimits | None = None,
        holding_limits: HoldingLimits | None = None,
    ) -> None:
        self.connect = connect
        self.time_limits = time_limits or TimeLimits()
        self.holding_limits = holding_limits or HoldingLimits()
        self._pipeline: StatementPipeline | None = None

    async def transact(self, batch: Sequence[Command]) -> BatchResult:
        """Decide `batch` in its order."""
        try:
            if self._pipeline is None:
                self._pipeline = StatementPipeline(await self.connect(), STATEMENTS)
            pipeline = self._pipeline
            state = await self._lock_and_read(pipeline, batch)
            failpoint("inventory.locked")
            replies = fold(state, batch)
            await self._write(pipeline, state)
        except BaseException:
            await self.close()  # it is unknown whether COMMIT arrived; the log knows
            raise
        return BatchResult(state.now, replies, {code: stock.available for code, stock in state.stock_levels.items()})

    async def close(self) -> None:
        """Close the connection; the next batch opens another."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            await pipeline.close()

    async def _lock_and_read(self, pipeline: StatementPipeline, batch: Sequence[Command]) -> State:
        values = _keys(batch)
        names = READS if values["orders"] != EMPTY_ARRAY else READS_WITHOUT_ORDERS
        results = await pipeline.execute([("begin", ()), *((name, values) for name in names)])
        rows = dict(zip(("begin", *names), results, strict=True))
        now: datetime = rows["lock_holders"][0][0].astimezone(UTC)
        carts = {user: CartState(*cart) for _, user, *cart in rows["lock_holders"]}
        stock_levels = {
            code: StockLevel(received, held, sold, Money(amount=price, currency=currency), version, for_sale)
            for code, received, held, sold, price, currency, version, for_sale in rows["lock_stock"]
        }
        entries = {
            (user, id_): LogEntry(command, STORED_OUTCOME_ADAPTER.validate_json(outcome))
            for user, id_, command, outcome in rows["stored_outcomes"]
        }
        pending: Counter[tuple[str, str]] = Counter()
        for user, code, quantity, amount, currency, in_cart in rows["open_holds"]:
            if in_cart:
                price = Money(amount=amount, currency=currency)
                carts[user].lines[code] = Line(product=code, quantity=quantity, price=price)
            else:
                pending[user, code] += quantity
        return State(
            now,
            carts,
            stock_levels,
            entries,
            _expiry_ids(carts, now),
            self.time_limits,
            _order_holds(rows.get("order_holds", ())),
            self.holding_limits,
            pending,
        )

    async def _write(self, pipeline: StatementPipeline, state: State) -> None:
        """Write one row per key, with one statement per table; the most contended rows, of stock, come last."""
        carts = [(user, state.carts[user]) for user in state.changed_carts]
        lines = [(user, code, state.carts[user].lines.get(code)) for user, code in state.changed_lines]
        new_orders = [(order_id, state.order_holds[order_id]) for order_id in state.new_orders]
        changed_orders = [(order_id, state.order_holds[order_id]) for order_id in state.changed_orders]
        stock = [(code, state.stock_levels[code]) for code in {row.product for row in state.ledger_rows}]
        rows_by_statement: dict[str, Sequence[tuple[Any, ...]]] = {
            "save_holders": [(user, h.revision, h.first_held_at, h.expires_at, h.just_expired) for user, h in carts],
            "save_holds": [(user, code, x.quantity, x.price.amount, x.price.currency) for user, code, x in lines if x],
            "delete_holds": [(user, code) for user, code, x in lines if not x],
            "save_reservations": [(id_, o.user, o.purpose, o.revision) for id_, o in new_orders],
            "save_order_holds": [
                (o.user, line.product, line.quantity, line.price.amount, line.price.currency, id_, o.state)
                for id_, o in changed_orders
                for line in o.lines
            ],
            "append_ledger": [
                (row.product, row.version, *row.key, row.cause, row.received, row.held, row.sold, row.order_id)
                for row in state.ledger_rows
            ],
            "append_log": [
                (*key, entry.fingerprint, entry.outcome, revision) for key, entry, revision in state.new_log_entries
            ],
            "insert_undelivered_expiries": state.undelivered,
            "save_stock": [(code, s.received, s.held, s.sold, s.version) for code, s in stock],
        }
        writes = [
            (name, array_literals(zip(*rows, strict=True))) for name in WRITES if (rows := rows_by_statement[name])
        ]
        pipeline.enqueue(writes)
        failpoint("inventory.written")
        await pipeline.execute([("commit", ())])


def _keys(batch: Sequence[Command]) -> dict[str, str]:
    """Return the keys of all rows that a batch may touch, as the parameters of round trip one."""
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
    # If a batch both commits an order and sells or releases it, the order's products are still in the cart.
    clears.update(user for order_id, user in commits.items() if order_id in steps)
    columns: dict[str, Collection[str]] = {
        "users": users,
        "clears": clears,
        "codes": codes,
        "log_users": [user for user, _ in log],
        "log_ids": [id_ for _, id_ in log],
        "orders": orders.union(commits, steps),
        "steps": steps,
    }
    return array_parameters(columns)


def _order_holds(rows: Iterable[tuple[Any, ...]]) -> dict[str, OrderHolds]:
    """Group the rows of the query `order_holds`: one row per line, or one without a line for an order without holds."""
    orders_by_id: dict[str, OrderHolds] = {}
    for order_id, user, purpose, revision, code, quantity, amount, currency, state in rows:
        order = orders_by_id.get(order_id) or OrderHolds(order_id, user, purpose=purpose, revision=revision)
        if code is not None:
            line = Line(product=code, quantity=quantity, price=Money(amount=amount, currency=currency))
            order = order._replace(lines=(*order.lines, line), state=state)
        orders_by_id[order_id] = order
    return orders_by_id


def _expiry_ids(carts: Mapping[str, CartState], now: datetime) -> dict[str, str]:
    return {
        user: expiry_id(user, cart.expires_at, cart.revision)
        for user, cart in carts.items()
        if cart.expires_at and is_due(cart, now)
    }
