"""The store of parcels. A request is stored before it is acknowledged, and moves are kept indefinitely."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from contracts.deliveries import Request
from contracts.envelope import Envelope, rfc3339
from contracts.orders import Address
from infrastructure.storage.job_queue import NOW
from infrastructure.storage.postgres import Connection, load_queries
from order_service.delivery.model import Move, Parcel, apply_request

QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
STORE_OPTIONS: Final = "-c transaction_timeout=5s -c lock_timeout=4s -c enable_seqscan=off -c jit=off"
"""Server settings for the connection of `DeliveryStore`."""


class ShipmentConflict(Exception):
    """The shipment id in a request belongs to another order. The request fails permanently."""


class DeliveryStore:
    """The store of parcels. `connect` must return a connection with `STORE_OPTIONS`; it is called again on error."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self._connection: Connection | None = None

    async def store_requests(self, batch: Sequence[tuple[Request, Envelope]]) -> None:
        """Store a batch of requests, in order and in one transaction.

        Raise `ShipmentConflict` if a shipment belongs to another order, or an error of Postgres; nothing is stored
        then.
        """
        try:
            connection = self._connection = self._connection or await self.connect()
            async with connection.transaction():
                await _accept(connection, batch)
        except ShipmentConflict:
            raise
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection. The next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _accept(connection: Connection, batch: Sequence[tuple[Request, Envelope]]) -> None:
    requests = {request.shipment_id: request for request, _ in batch}
    await connection.execute(
        QUERIES["insert_missing"],
        {
            "shipments": list(requests),
            "orders": [request.order_id for request in requests.values()],
            "users": [request.user_id for request in requests.values()],
        },
    )
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUERIES["lock_parcels"], {"shipments": sorted(requests)})
        parcels = {row["shipment_id"]: parcel_of(row) for row in await cursor.fetchall()}
    for request, event in batch:
        parcel = parcels[request.shipment_id]
        if parcel.order_id != request.order_id:
            raise ShipmentConflict(
                f"shipment {parcel.shipment_id} belongs to order {parcel.order_id}, not to {request.order_id}"
            )
        accepted = apply_request(parcel, request)
        parcels[parcel.shipment_id] = accepted.parcel
        await connection.execute(
            QUERIES["save_parcel"],
            {
                "shipment_id": parcel.shipment_id,
                "wish": accepted.parcel.intent,
                "address": _address(accepted.parcel),
                "requestid": event.requestid,
                "traceparent": event.traceparent,
                "move": accepted.must_call_carrier,
                "tell": accepted.must_republish,
            },
        )


def parcel_of(row: Mapping[str, Any]) -> Parcel:
    """Return the parcel of a stored row."""
    return Parcel(
        shipment_id=row["shipment_id"],
        order_id=row["order_id"],
        user_id=row["user_id"],
        intent=row["wish"],
        address=None if row["address"] is None else Address.model_validate(row["address"]),
        state=row["state"],
        carrier=row["carrier"],
        tracking=row["tracking"],
        booked_at=row["booked_at"],
        moves=tuple(Move(each["to"], datetime.fromisoformat(each["at"]), each.get("reason")) for each in row["moves"]),
    )


def changed_columns(before: Parcel, after: Parcel) -> dict[str, Any]:
    """Return the columns to set when a lease ends. New moves are scheduled for publication."""
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
