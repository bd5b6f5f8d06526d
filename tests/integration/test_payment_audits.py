"""The audits of payment and delivery: what is planted is found, each by its own check."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from infrastructure.storage.postgres import Connection
from order_service.delivery import audit as deliveries
from order_service.delivery.store import MIGRATIONS as DELIVERY
from order_service.payment import audit as payments
from order_service.payment.store import MIGRATIONS as PAYMENT

GRACE = timedelta(seconds=30)
LONG_AGO = "now() - interval '1 hour'"
STEP = (
    "INSERT INTO step (key, order_id, user_id, payment_id, wish, state, settled_amount, settled_currency, settled_at,"
    " told, ask_at, ask_lease) VALUES"
)
PARCEL = (
    "INSERT INTO parcel (shipment_id, order_id, user_id, wish, state, tracking, moves, told, moved_at, move_at,"
    " move_lease) VALUES"
)


@pytest.fixture
async def payment(settings: Settings) -> AsyncIterator[Connection]:
    await postgres.migrate(settings, "payment", PAYMENT)
    async with await postgres.connect(settings, "payment") as connection:
        yield connection
        await connection.execute(f'DROP SCHEMA "{settings.schema_name("payment")}" CASCADE'.encode())


@pytest.fixture
async def delivery(settings: Settings) -> AsyncIterator[Connection]:
    await postgres.migrate(settings, "delivery", DELIVERY)
    async with await postgres.connect(settings, "delivery") as connection:
        yield connection
        await connection.execute(f'DROP SCHEMA "{settings.schema_name("delivery")}" CASCADE'.encode())


WELL = f"('a', 'o', 'ann', 'a', 'charge', 'captured', 10, 'GBP', {LONG_AGO}, 'captured', NULL, NULL)"


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ([WELL.replace("'a'", "'b'")], "2 payments were captured"),
        (
            [f"('r', 'o', 'ann', 'a', 'refund', 'refunded', 11, 'GBP', {LONG_AGO}, 'refunded', NULL, NULL)"],
            "refunded",
        ),
        (
            [f"('b', 'p', 'ann', 'b', 'void', 'declined', NULL, NULL, {LONG_AGO}, 'declined', NULL, NULL)"],
            "was published",
        ),
        (["('b', 'p', 'ann', 'b', 'charge', 'open', NULL, NULL, NULL, NULL, NULL, NULL)"], "no call to the provider"),
        ([f"('b', 'p', 'ann', 'b', 'charge', 'open', NULL, NULL, NULL, NULL, now(), {LONG_AGO})"], "is leased until"),
        (["('b', 'p', 'ann', 'b', 'charge', 'open', NULL, NULL, NULL, NULL, now(), 'infinity')"], "is leased until"),
    ],
)
async def test_faults_of_payments_are_found(payment: Connection, planted: list[str], found: str) -> None:
    await payment.execute(f"{STEP} {WELL}".encode())
    report = await payments.audit(payment, GRACE)
    assert (report["ok"], report["figures"]["captured"]) == (True, 10)
    await payment.set_read_only(False)
    await payment.execute(f"{STEP} {', '.join(planted)}".encode())
    wrong = await payments.audit(payment, GRACE)
    assert (wrong["ok"], len(wrong["violations"])) == (False, 1)
    assert found in wrong["violations"][0]
    assert wrong["digest"] != report["digest"]


async def test_a_provider_that_disagrees_is_reported(payment: Connection) -> None:
    await payment.execute(f"{STEP} {WELL}".encode())
    entry = {"key": "a", "charge": "a", "type": "captured", "amount": 10, "currency": "GBP", "order_id": "o"}

    async def found(*entries: dict[str, Any]) -> list[str]:
        history = payments.ProviderHistory(entries, datetime.now(UTC))
        return list((await payments.audit(payment, GRACE, history))["violations"])

    assert await found(entry) == []
    assert await found({**entry, "amount": 9}) == [
        (
            "order o: a: the provider reports captured (9 GBP minor units),"
            " payment has stored captured (10 GBP minor units)"
        )
    ]
    assert await found() == [
        "order o: payment has stored a as captured (10 GBP minor units); the provider knows nothing of it"
    ]


SENT = f"""('a', 'o', 'ann', 'book', 'delivered', 'T', '[{{"to": "booked"}}]', 1, {LONG_AGO}, NULL, NULL)"""


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        (SENT.replace("'a'", "'b'"), "2 parcels were shipped"),
        (f"""('b', 'p', 'ann', 'book', 'called-off', NULL, '[1, 2]', 1, {LONG_AGO}, NULL, NULL)""", "1 of 2 moves"),
        ("('b', 'p', 'ann', 'book', 'booked', 'T', '[]', 0, now(), NULL, NULL)", "no call to the carrier"),
        (f"('b', 'p', 'ann', 'book', 'booked', 'T', '[]', 0, now(), {LONG_AGO}, NULL)", "is overdue since"),
        ("('b', 'p', 'ann', 'book', 'booked', 'T', '[]', 0, now(), now(), 'infinity')", "is leased until"),
    ],
)
async def test_faults_of_parcels_are_found(delivery: Connection, planted: str, found: str) -> None:
    await delivery.execute(f"{PARCEL} {SENT}".encode())
    report = await deliveries.audit(delivery, GRACE)
    assert (report["violations"], report["figures"]["delivered"]) == ([], 1)
    await delivery.set_read_only(False)
    await delivery.execute(f"{PARCEL} {planted}".encode())
    wrong = await deliveries.audit(delivery, GRACE)
    assert (wrong["ok"], len(wrong["violations"])) == (False, 1)
    assert found in wrong["violations"][0]
