"""Batches that aiokafka refuses: what can be read of them is returned, and the position goes on behind the rest.

Each batch is read by the real `PartitionRecords` of aiokafka's fetcher, from the bytes that a broker sends.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from contracts.envelope import Envelope, UndecodableError, UnreadableBatch
from infrastructure.messaging import record_batches
from infrastructure.messaging.consumers import offset_behind

HERE: Final = TopicPartition("t", 0)
CODECS: Final = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
CHECKSUM_AT: Final = 17
HEADER_BYTES: Final = 61


def batch(*values: bytes, base: int = 0, codec: str = "none", header: str = "name") -> bytes:
    """Return a batch of records at `base` and the following offsets, as a broker stores it."""
    builder = DefaultRecordBatchBuilder(2, CODECS[codec], 0, -1, -1, -1, 100_000_000)
    for number, value in enumerate(values):
        builder.append(number, 1_000 + number, b"key", value, [(header, b"content")])
    return struct.pack(">q", base) + bytes(builder.build())[8:]


def with_checksum(raw: bytes) -> bytes:
    """Return the batch with the checksum of its changed bytes, and its length."""
    raw = raw[:8] + struct.pack(">i", len(raw) - 12) + raw[12:]
    return raw[:CHECKSUM_AT] + struct.pack(">I", calc_crc32c(raw[CHECKSUM_AT + 4 :])) + raw[CHECKSUM_AT + 4 :]


def damaged(raw: bytes) -> bytes:
    """Return the batch with one wrong byte at its end, as a bad disk leaves it."""
    return raw[:-1] + bytes([raw[-1] ^ 1])


def fetched(*batches: bytes, offset: int = 0) -> Any:
    return fetcher.PartitionRecords(
        HERE, fetcher.MemoryRecords(b"".join(batches)), [], offset, None, None, check_crcs=True, isolation_level=1
    )


def read(*batches: bytes, offset: int = 0) -> tuple[list[Any], int]:
    """Return the records of a fetch, fetched again as often as the client does, and the position behind them."""
    for _ in range(record_batches.CHECKSUM_ATTEMPTS):
        records = fetched(*batches, offset=offset)
        found = list(records)
        if found:
            break
    return found, records.next_fetch_offset


def shown(records: list[Any]) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield first and last offset of each record, and its value unless it is unreadable."""
    for record in records:
        value = None if isinstance(record.value, UnreadableBatch) else record.value
        yield record.offset, offset_behind(record) - 1, value


@pytest.mark.parametrize("codec", CODECS)
def test_every_compression_is_read(codec: str) -> None:
    found, position = read(batch(b"one", b"two" * 1000, base=7, codec=codec), offset=7)
    assert list(shown(found)) == [(7, 7, b"one"), (8, 8, b"two" * 1000)]
    assert position == 9


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "none"])
def test_a_batch_of_megabytes_is_read_and_one_without_end_is_not(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = batch(bytes(3_000_000), base=0, codec=codec)
    assert [len(record.value) for record in read(raw)[0]] == [3_000_000]
    monkeypatch.setattr(record_batches, "MAX_BATCH_BYTES", 2_000_000)
    found, position = read(raw, batch(b"next", base=1))
    assert list(shown(found)) == [(0, 0, None), (1, 1, b"next")]
    assert "more than 2000000 bytes" in found[0].value.explanation
    assert position == 2


UNREADABLE: Final[dict[str, bytes]] = {
    "a wrong checksum": damaged(batch(b"a", b"b", b"c", base=5)),
    "an unknown compression": with_checksum(
        (raw := batch(b"a", b"b", b"c", base=5))[:21] + struct.pack(">h", 7) + raw[23:]
    ),
    "content that is no zstd": with_checksum(
        (raw := batch(b"a", b"b", b"c", base=5, codec="zstd"))[:HEADER_BYTES] + b"\xff" * 40
    ),
    "content that is no snappy": with_checksum(
        (raw := batch(b"a", b"b", b"c", base=5, codec="snappy"))[: HEADER_BYTES + 16]
        + struct.pack(">i", -4)
        + b"\0" * 9
    ),
    "content that is no lz4": with_checksum(
        (raw := batch(b"a", b"b", b"c", base=5, codec="lz4"))[:HEADER_BYTES] + b"\xff" * 40
    ),
    "content that is no gzip": with_checksum(
        (raw := batch(b"a", b"b", b"c", base=5, codec="gzip"))[:HEADER_BYTES] + b"\xff" * 40
    ),
    "compressed content that is no record": with_checksum(
        (raw := batch(b"a", b"b", b"c", base=5, codec="zstd"))[:HEADER_BYTES]
        + bytes(cramjam.zstd.compress(b"\xff" * 99))
    ),
}


@pytest.mark.parametrize("raw", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_batch_is_one_record_and_its_neighbours_are_read(raw: bytes) -> None:
    found, position = read(batch(b"before", base=4), raw, batch(b"behind", base=8), offset=4)
    if found[-1].offset < 5:  # a batch with a wrong checksum is fetched again first
        more, position = read(raw, batch(b"behind", base=8), offset=5)
        found += more
    assert list(shown(found)) == [(4, 4, b"before"), (5, 7, None), (8, 8, b"behind")]
    assert position == 9
    with pytest.raises(UndecodableError) as refused:
        Envelope.decode(found[1].key, found[1].value)
    assert refused.value.reason == "unreadable"
    assert "offsets 5 to 7 cannot be decoded" in refused.value.detail


def test_a_position_within_an_unreadable_batch_goes_on_from_there() -> None:
    found, position = read(UNREADABLE["content that is no zstd"], offset=6)
    assert (list(shown(found)), position) == ([(6, 7, None)], 8)


def test_a_wrong_checksum_is_read_again_before_it_is_believed() -> None:
    raw = damaged(batch(b"a", base=20))
    for _ in range(record_batches.CHECKSUM_ATTEMPTS - 1):
        records = fetched(raw, offset=20)
        assert list(records) == []
        assert records.next_fetch_offset == 20, "the batch has to be fetched again"
    assert list(shown(list(fetched(batch(b"a", base=20), offset=20)))) == [(20, 20, b"a")]


def test_a_header_name_that_is_not_utf8_costs_no_record() -> None:
    raw = batch(b"a", b"b", header="\x7f\x7f\x7f")
    raw = with_checksum(raw.replace(b"\x7f\x7f\x7f", b"\xff\xfe\xfd"))
    found, position = read(raw)
    assert list(shown(found)) == [(0, 0, b"a"), (1, 1, b"b")]
    assert found[0].headers == (("\\xff\\xfe\\xfd", b"content"),)
    assert [record.timestamp for record in found] == [1_000, 1_001]
    assert position == 2


def test_one_bad_record_costs_no_other() -> None:
    raw = batch(b"aaaa", b"bbbb", b"cccc", header="name")
    second = raw.index(b"bbbb") - 1  # the length of the value, which then goes beyond the record
    found, position = read(with_checksum(raw[:second] + b"\x7e" + raw[second + 1 :]))
    assert list(shown(found)) == [(0, 0, b"aaaa"), (1, 1, None), (2, 2, b"cccc")]
    assert position == 3


def test_a_damaged_header_is_passed_over_one_offset_at_a_time() -> None:
    """A damaged last offset cannot be believed: good records must not be skipped with it."""
    raw = batch(b"a", b"b")
    raw = raw[:23] + struct.pack(">i", 1_000_000) + raw[27:]
    found, position = read(raw)
    assert (list(shown(found)), position) == ([(0, 0, None)], 1)
