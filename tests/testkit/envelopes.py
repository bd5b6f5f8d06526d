"""An event of a cart in every form: as an envelope, as the bytes of a record, and as records of a topic."""

from datetime import UTC, datetime

import orjson

from contracts import cart
from contracts.envelope import Envelope
from infrastructure.messaging.broker import partition_of
from infrastructure.messaging.dead_letters import Record

PARTITIONS = 24
HERE = partition_of(b"ann", PARTITIONS)
TOPIC = cart.REQUESTS.name

EVENT = Envelope(
    id="ann/1/add",
    source="/edge",
    type="holdfast.cart.add",
    subject="ann",
    time=datetime(2026, 11, 21, 3, 24, 41, 118_000, tzinfo=UTC),
    requestid="1",
    data={"user_id": "ann", "product": "85123A", "quantity": 2},
)
# As the contract prints it: what is on the wire must not change by accident.
GOLDEN = (
    b'{"specversion":"1.0","id":"ann/1/add","source":"/edge","type":"holdfast.cart.add","subject":"ann",'
    b'"time":"2026-11-21T03:24:41.118Z","datacontenttype":"application/json","requestid":"1",'
    b'"data":{"user_id":"ann","product":"85123A","quantity":2}}'
)


def changed(**fields: object) -> bytes:
    return orjson.dumps({**orjson.loads(GOLDEN), **fields})


def record(value: bytes | None = GOLDEN, key: bytes | None = b"ann", partition: int = HERE, offset: int = 7) -> Record:
    return Record(TOPIC, partition, offset, key, value)


def requested(*ids: str) -> list[Record]:
    """Return the records of requests with some ids, at offsets from 0."""
    return [record(changed(requestid=each), offset=offset) for offset, each in enumerate(ids)]
