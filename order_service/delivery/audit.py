"""The audit of delivery: every move is published, and every open parcel has a scheduled call to the carrier."""

from datetime import timedelta
from typing import Any, Final

from infrastructure.audit.order_accounts import DeliveryEntry, ParcelEntry, render_account
from infrastructure.audit.table_auditor import run_checks, snapshot, snapshot_time
from infrastructure.storage.postgres import Connection
from order_service.delivery.store import QUERIES

CHECKS: Final = ("not_published", "not_scheduled", "overdue", "lease_out_of_range", "shipped_twice")


async def audit(connection: Connection, grace: timedelta, *, with_account: bool = False) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "digest", "figures": {name: count}}` from one snapshot.

    With `with_account` the result also has `accounts`.
    """
    async with snapshot(connection):
        violations, digest, figures = await run_checks(connection, QUERIES, CHECKS, grace=grace)
        report = {"ok": not violations, "violations": violations, "digest": digest, "figures": figures}
        if with_account:
            report["accounts"] = render_account(await _parcels(connection), await snapshot_time(connection), grace)
    return report


async def _parcels(connection: Connection) -> dict[str, DeliveryEntry]:
    """Return the parcels of each order."""
    found: dict[str, tuple[ParcelEntry, ...]] = {}
    async with connection.cursor("parcels") as rows:
        await rows.execute(QUERIES["parcels"])
        async for order, shipment, user, state, at in rows:
            found[order] = (*found.get(order, ()), ParcelEntry(shipment=shipment, user=user, state=state, at=at))
    return {order: DeliveryEntry(parcels=parcels) for order, parcels in found.items()}
