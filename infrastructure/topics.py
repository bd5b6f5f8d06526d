"""What a topic is here: its name, how it is keyed and how long it keeps its records."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

PARTITIONS: Final = 24
"""Partitions of a keyed topic unless HOLDFAST_PARTITIONS says otherwise; fixed once the topics exist."""
MOST_PARTITIONS: Final = 1000

STRANGER_MAX_BYTES: Final = 1024 * 1024 + 64 * 1024
DEAD_LETTER_MAX_BYTES: Final = 2 * 1024 * 1024
"""Four thirds of the above and a little: a record of any bytes fits into its dead letter as base64."""

SEGMENT_MS: Final = 24 * 3600 * 1000

Cleanup = Literal["delete", "compact"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of the contract; the broker knows it as `prefix + name`."""

    name: str
    keyed_by: str
    retention: timedelta | None = None
    partitions: int | None = None
    """`None`: as many as every keyed topic of the shop, so that a key has one partition number everywhere."""

    @property
    def cleanup(self) -> Cleanup:
        """Compacted when it keeps the last state of each key, else trimmed by age."""
        return "delete" if self.retention else "compact"

    @property
    def dead_letters(self) -> "Topic":
        """Where a record goes that can't be acted on; one partition, keyed as the original."""
        return Topic(f"{self.name}.dlq", self.keyed_by, timedelta(days=7), partitions=1)

    def config(self) -> dict[str, str]:
        """The broker's settings for this topic, by their Kafka names."""
        if self.retention is None:
            return {
                "cleanup.policy": "compact",
                "segment.bytes": "1048576",
                "min.cleanable.dirty.ratio": "0.1",
                "max.compaction.lag.ms": "60000",
            }
        # An ordinary topic takes a record far too big for us as well: it is dead-lettered, and its sender sees why.
        limit = DEAD_LETTER_MAX_BYTES if self.name.endswith(".dlq") else STRANGER_MAX_BYTES
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(int(self.retention.total_seconds() * 1000)),
            # Age removes whole segments. With Kafka's own of a week a quiet topic would keep its records for two, which
            # is longer than the request log remembers what became of them.
            "segment.ms": str(SEGMENT_MS),
            "max.message.bytes": str(limit),
        }
