"""Reading of record batches that aiokafka refuses: the readable records of each, and the offsets of the others.

aiokafka raises an error at a batch that it cannot decode, on each attempt again, so one batch of a foreign client stops
its partition. With the patches at the end of this module each consumer of the process passes such a batch: records that
can be read are returned as usual, and the rest is returned as one record whose value is an `UnreadableBatch`. Its
offset is the first one that is passed over. `Envelope.decode` refuses such a value with its reason.

Compressed batches are decompressed up to `MAX_BATCH_BYTES` only: some kilobytes may stand for gigabytes.
"""

import gzip
import io
import logging
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import cramjam
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka import codec as codecs
from aiokafka.consumer import fetcher
from aiokafka.record import default_records, legacy_records
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c, decode_varint

from contracts.envelope import UnreadableBatch

log = logging.getLogger(__name__)

MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Greatest decompressed batch: about 40 ms of work. Kafka's clients collect at most a megabyte by default."""
CHECKSUM_ATTEMPTS: Final = 3
"""Number of fetches of a batch whose checksum is wrong. Errors on the way pass, errors on the broker's disk stay."""

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, checksum, attributes, last offset delta, first and last timestamp, producer
id and epoch, base sequence, number of records: a batch of Kafka's message format 2."""
_CHECKSUM_FROM: Final = struct.calcsize(">qiibI")
_LENGTH_FROM: Final = struct.calcsize(">q")
_RECORDS_FROM: Final = struct.calcsize(">qi")
"""Number of bytes that the length of a batch does not count."""
_MAGIC_AT: Final = struct.calcsize(">qii")
_MAGIC: Final = 2
_XERIAL_HEADER_BYTES: Final = 16


class UndecodableBatchError(ValueError):
    """A batch, or one of its records, has no form that can be decoded. The text says why."""


# ---- decompression --------------------------------------------------------------------------------------------------


def _too_big() -> UndecodableBatchError:
    return UndecodableBatchError(f"decompressed, the batch has more than {MAX_BATCH_BYTES} bytes")


def decompress_gzip(payload: Any) -> bytes:
    """Decompress gzip. Raises an error if the result would be longer than `MAX_BATCH_BYTES`."""
    with gzip.GzipFile(fileobj=io.BytesIO(payload)) as file:
        data = file.read(MAX_BATCH_BYTES + 1)
    if len(data) > MAX_BATCH_BYTES:
        raise _too_big()
    return data


def decompress_zstd(payload: Any) -> bytes:
    """Decompress zstd. Raises an error if the result would be longer than `MAX_BATCH_BYTES`."""
    return _decompress(cramjam.zstd.decompress_into, payload)


def decompress_lz4(payload: Any) -> bytes:
    """Decompress LZ4. Raises an error if the result would be longer than `MAX_BATCH_BYTES`."""
    return _decompress(cramjam.lz4.decompress_into, payload)


def _decompress(decompress_into: Callable[[bytes, bytearray], int], payload: Any) -> bytes:
    """Decompress into a buffer that grows: neither format says reliably how long its content is."""
    compressed = bytes(payload)
    size = min(MAX_BATCH_BYTES, max(65_536, 8 * len(compressed)))
    while True:
        buffer = bytearray(size)
        try:
            length = decompress_into(compressed, buffer)
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise
            if size == MAX_BATCH_BYTES:
                raise _too_big() from None
            size = min(MAX_BATCH_BYTES, 8 * size)
        else:
            return bytes(memoryview(buffer)[:length])


_snappy_decode: Final = codecs.snappy_decode


def decompress_snappy(payload: Any) -> bytes:
    """Decompress snappy, plain or framed. Raises an error if the result would be longer than `MAX_BATCH_BYTES`."""
    data = bytes(payload)
    if _snappy_size(data) > MAX_BATCH_BYTES:
        raise _too_big()
    return bytes(_snappy_decode(data))


def _snappy_size(data: bytes) -> int:
    """Return the length that snappy data declare for their content; raise an error if their frames contradict it."""
    if not codecs._detect_xerial_stream(data):  # noqa: SLF001 - the framing of Java's clients; there is no public way
        return int(cramjam.snappy.decompress_raw_len(data))
    size, at = 0, _XERIAL_HEADER_BYTES
    while at < len(data):
        (length,) = struct.unpack_from(">i", data, at)
        at += 4
        if not 0 < length <= len(data) - at:
            raise UndecodableBatchError("the length of a snappy block is wrong")
        size += int(cramjam.snappy.decompress_raw_len(data[at : at + length]))
        at += length
    return size


DECOMPRESS: Final[dict[int, Callable[[Any], bytes]]] = {
    1: decompress_gzip,
    2: decompress_snappy,
    3: decompress_lz4,
    4: decompress_zstd,
}
"""Decompression by the compression type in the attributes of a batch."""


# ---- batches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """The fields of a batch's header that are needed to read and to pass it."""

    base_offset: int
    checksum: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    records: int

    @classmethod
    def of(cls, batch: bytes) -> "BatchHeader":
        """Read the header of a batch of message format 2. Raises `struct.error` if it is too short."""
        base, _, _, _, checksum, attributes, delta, first, last, producer, _, _, records = _HEADER.unpack_from(batch)
        return cls(base, checksum, attributes, delta, first, last, producer, records)

    @property
    def is_control_batch(self) -> bool:
        """True for the marker of a transaction's end."""
        return bool(self.attributes & default_records.DefaultRecordBase.CONTROL_MASK)

    @property
    def has_log_append_time(self) -> bool:
        """True if the broker has set the timestamps."""
        return bool(self.attributes & default_records.DefaultRecordBase.TIMESTAMP_TYPE_MASK)


def read_records(tp: TopicPartition, batch: bytes, header: BatchHeader) -> Iterator[ConsumerRecord]:
    """Yield the records of a batch one by one, tolerating names of headers that are not UTF-8.

    A record that cannot be read is yielded as an `UnreadableBatch` of one offset. Raises an error at records whose
    place cannot be found; the records before have been yielded then.
    """
    data = batch[_HEADER.size :]
    if codec := header.attributes & default_records.DefaultRecordBase.CODEC_MASK:
        if codec not in DECOMPRESS:
            raise UndecodableBatchError(f"the compression type {codec} is unknown")
        data = DECOMPRESS[codec](data)
    buffer, at = bytearray(data), 0
    expected = header.base_offset
    for _ in range(header.records):
        length, at = decode_varint(buffer, at)
        if not 0 < length <= len(buffer) - at:
            raise UndecodableBatchError(f"a record claims to have {length} bytes")
        try:
            record = _read_record(tp, buffer[at : at + length], header)
        except (ValueError, IndexError) as error:
            record = unreadable_record(tp, bytes(buffer[at : at + length]), expected, expected, str(error), header)
        yield record
        expected = record.offset + 1
        at += length


def _read_record(tp: TopicPartition, buffer: bytearray, header: BatchHeader) -> ConsumerRecord:
    def take(at: int) -> tuple[bytes | None, int]:
        length, at = decode_varint(buffer, at)
        if length < 0:
            return None, at
        if length > len(buffer) - at:
            raise UndecodableBatchError(f"a field claims to have {length} bytes")
        return bytes(buffer[at : at + length]), at + length

    timestamp_delta, at = decode_varint(buffer, 1)  # behind the attributes, which have no meaning
    offset_delta, at = decode_varint(buffer, at)
    if not 0 <= offset_delta <= header.last_offset_delta:
        raise UndecodableBatchError(f"a record claims to be number {offset_delta} of its batch")
    key, at = take(at)
    value, at = take(at)
    count, at = decode_varint(buffer, at)
    headers = []
    for _ in range(count):
        name, at = take(at)
        content, at = take(at)
        headers.append(((name or b"").decode(errors="backslashreplace"), content))
    append_time = header.has_log_append_time
    timestamp = header.max_timestamp if append_time else header.first_timestamp + timestamp_delta
    sizes = (-1 if key is None else len(key), -1 if value is None else len(value))
    offset = header.base_offset + offset_delta
    return ConsumerRecord(
        tp.topic, tp.partition, offset, timestamp, int(append_time), key, value, None, *sizes, tuple(headers)
    )


def unreadable_record(
    tp: TopicPartition, raw: bytes, first: int, last: int, reason: str, header: BatchHeader | None
) -> ConsumerRecord:
    """Return the record that stands for the offsets from `first` to `last`, which hold nothing that can be read."""
    value = UnreadableBatch(raw, first_offset=first, last_offset=last, reason=reason)
    timestamp = -1 if header is None else header.max_timestamp
    return ConsumerRecord(tp.topic, tp.partition, first, timestamp, 0, None, value, None, -1, len(raw), ())


class RawBatches:
    """Batches of one fetch, with the bytes of the one that was taken last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._batches = MemoryRecords(data)
        self._at = 0
        self.last = b""
        """Bytes of the batch that `next_batch` returned last, or failed to return."""

    def size_in_bytes(self) -> int:
        """Return the size of all batches."""
        return int(self._batches.size_in_bytes())

    def has_next(self) -> bool:
        """Return whether there is another batch."""
        return bool(self._batches.has_next())

    def next_batch(self) -> Any:
        """Return the next batch."""
        (length,) = struct.unpack_from(">i", self._data, self._at + _LENGTH_FROM)
        end = self._at + _RECORDS_FROM + length
        self.last = bytes(memoryview(self._data)[self._at : end])
        self._at = end
        return self._batches.next_batch()

    @property
    def next_base_offset(self) -> int | None:
        """The first offset of the next batch; `None` if there is no other batch."""
        if not self.has_next():
            return None
        return int(struct.unpack_from(">q", self._data, self._at)[0])


_NO_BATCHES: Final = MemoryRecords(b"")


def open_batches(data: bytes | None) -> Any:
    """Return the batches of one partition in a fetch. Most partitions have none: that must cost next to nothing."""
    return RawBatches(data) if data else _NO_BATCHES


_wrong_checksums: Final[Counter[tuple[TopicPartition, int]]] = Counter()
"""Number of fetches in which a batch had a wrong checksum, by partition and first offset."""


class TolerantRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Records of one fetch of a partition; aiokafka's, but a batch that cannot be decoded is passed over."""

    def _unpack_records(self) -> Iterator[ConsumerRecord]:
        while True:
            try:
                yield from super()._unpack_records()
            except Exception as error:  # noqa: BLE001 - whatever the decoders raise, the partition must go on
                if self._is_to_be_fetched_again():
                    return
                yield from self._salvage(error)
            else:
                return

    def _is_to_be_fetched_again(self) -> bool:
        """Return whether the last batch has a wrong checksum for the first times."""
        batch: bytes = self._records.last
        if self._check_crcs and len(batch) > _CHECKSUM_FROM and not _has_valid_checksum(batch):
            place = self._tp, self.next_fetch_offset
            _wrong_checksums[place] += 1
            if _wrong_checksums[place] < CHECKSUM_ATTEMPTS:
                log.warning("%s/%s: the batch at offset %s has a wrong checksum; reading it again", *self._tp, place[1])
                return True
            del _wrong_checksums[place]
        return False

    def _salvage(self, error: Exception) -> Iterator[ConsumerRecord]:
        """Yield what can be read of the last batch, and one record for the rest; set the position behind the batch."""
        batch: bytes = self._records.last
        header = _header(batch)
        end = self._end_of(batch, header)
        if header is not None and header.is_control_batch:
            # Without its marker the transaction counts as committed: its records must not vanish unseen.
            self._aborted_producers.discard(header.producer_id)
            self.next_fetch_offset = end
            return
        was_decompressed = not isinstance(error, UndecodableBatchError)  # else a second attempt would cost as much
        if header is not None and was_decompressed and _has_valid_checksum(batch):
            try:
                for record in read_records(self._tp, batch, header):
                    if record.offset >= self.next_fetch_offset:
                        self.next_fetch_offset = record.offset + 1
                        yield record
            except Exception as worse:  # noqa: BLE001 - as above
                error = worse
            else:
                self.next_fetch_offset = max(self.next_fetch_offset, end)
                return
        first = self.next_fetch_offset
        self.next_fetch_offset = max(end, first + 1)
        reason = str(error) if isinstance(error, UndecodableBatchError) else f"{type(error).__name__}: {error}"
        log.error("%s/%s: the records from offset %s to %s cannot be read: %s", *self._tp, first, end - 1, reason)
        yield unreadable_record(self._tp, batch, first, self.next_fetch_offset - 1, reason, header)

    def _end_of(self, batch: bytes, header: BatchHeader | None) -> int:
        """Return the offset behind a batch, never behind the first one of the next batch.

        A header with a wrong checksum is believed only if its two numbers agree. Otherwise a single offset is passed
        over, and the broker returns the same batch for the next one.
        """
        first: int = self.next_fetch_offset
        end = first + 1
        if header is not None:
            agrees = header.last_offset_delta + 1 == header.records > 0
            if agrees or _has_valid_checksum(batch):
                end = max(end, header.base_offset + header.last_offset_delta + 1)
        following = self._records.next_base_offset
        return end if following is None or following <= first else min(end, following)


def _header(batch: bytes) -> BatchHeader | None:
    if len(batch) < _HEADER.size or batch[_MAGIC_AT] != _MAGIC:
        return None
    return BatchHeader.of(batch)


def _has_valid_checksum(batch: bytes) -> bool:
    header = _header(batch)
    return header is not None and header.checksum == calc_crc32c(batch[_CHECKSUM_FROM:])


# The classes and functions below are looked up by these names in aiokafka's modules when a fetch has arrived.
fetcher.MemoryRecords = open_batches
fetcher.PartitionRecords = TolerantRecords
for _batch in (default_records.DefaultRecordBatch, legacy_records.LegacyRecordBatch):
    _module = sys.modules[_batch.__module__]  # in C, or in Python where there is no compiled one
    for _name, _decompress_bounded in (
        ("gzip_decode", decompress_gzip),
        ("snappy_decode", decompress_snappy),
        ("lz4_decode", decompress_lz4),
        ("zstd_decode", decompress_zstd),
    ):
        setattr(_module, _name, _decompress_bounded)
