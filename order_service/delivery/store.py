"""Delivery's rows: a parcel is stored here before its request is acknowledged, and each of its moves for ever."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from infrastructure.envelope import Envelope, rfc3339
from infrastructure.postgres import Connection, load_queries
from infrastructure.pump import NOW
from order_service.delivery.messages import Request
from order_service.delivery.model import Move, Parcel, accept
from order_service.messages import Address

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
OPTIONS: Final = "-c transaction_timeout=5s -c lock_timeout=4s -c enable_seqscan=off -c jit=off"
"""Server settings for the connection of `DeliveryStore`."""


class ParcelsDiffer(Exception):
    """A shipment that is known already belongs to another order: it is not ours to touch."""


class DeliveryStore:
    """The rows. `connect` gives a connection with `OPTIONS`; after an error it is asked for another."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self._connection: Connection | None = None

    async def accept(self, asked: Sequence[tuple[Request, Envelope]]) -> None:
        """Store what is wanted, in one transaction and in this order; raises what Postgres raises, and nothing is then.

        `ParcelsDiffer` when a shipment comes with another order.
        """
        try:
            connection = self._connection = self._connection or await self.connect()
            async with connection.transaction():
                await _accept(connection, asked)
        except ParcelsDiffer:
            raise
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Give the connection up; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _accept(connection: Connection, asked: Sequence[tuple[Request, Envelope]]) -> None:
    wanted = {request.shipment_id: request for request, _ in asked}
    await connection.execute(
        QUERIES["insert_missing"],
        {
            "shipments": list(wanted),
            "orders": [request.order_id for request in wanted.values()],
            "users": [request.user_id for request in wanted.values()],
        },
    )
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUERIES["lock_parcels"], {"shipments": sorted(wanted)})
        parcels = {row["shipment_id"]: parcel_of(row) for row in await cursor.fetchall()}
    for request, event in asked:
        parcel = parcels[request.shipment_id]
        if parcel.order_id != request.order_id:
            raise ParcelsDiffer(f"{parcel.shipment_id} belongs to order {parcel.order_id}")
        accepted = accept(parcel, request)
        parcels[parcel.shipment_id] = accepted.parcel
        await connection.execute(
            QUERIES["save_parcel"],
            {
                "shipment_id": parcel.shipment_id,
                "wish": accepted.parcel.wish,
                "address": _address(accepted.parcel),
                "requestid": event.requestid,
                "traceparent": event.traceparent,
                "move": accepted.move,
                "tell": accepted.tell,
            },
        )


def parcel_of(row: Mapping[str, Any]) -> Parcel:
    """The parcel that a row of the table holds."""
    return Parcel(
        shipment_id=row["shipment_id"],
        order_id=row["order_id"],
        user_id=row["user_id"],
        wish=row["wish"],
        address=None if row["address"] is None else Address.model_validate(row["address"]),
        state=row["state"],
        carrier=row["carrier"],
        tracking=row["tracking"],
        booked_at=row["booked_at"],
        moves=tuple(Move(each["to"], datetime.fromisoformat(each["at"]), each.get("reason")) for each in row["moves"]),
    )


def changes(before: Parcel, after: Parcel) -> dict[str, Any]:
    """The columns of what the carrier has said, for the end of a lease. What is new is to be told."""
    if after.moves == before.moves:
        return {}
    return {
        "state": after.state,
        "carrier": after.carrier,
        "tracking": after.tracking,
        "booked_at": after.booked_at,
        "address": _address(after),
        "moves": Jsonb(
            [
                {"to": move.to, "at": rfc3339(move.at), **({"reason": move.reason} if move.reason else {})}
                for move in after.moves
            ]
        ),
        "moved_at": NOW,
        "tell_at": NOW,
    }


def _address(parcel: Parcel) -> Jsonb | None:
    return None if parcel.address is None else Jsonb(parcel.address.model_dump(mode="json"))
