"""Topics: names, keys, partitions, retention, and the broker settings that follow."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

PARTITIONS: Final = 24
"""Partitions of a keyed topic unless HOLDFAST_PARTITIONS says otherwise; fixed once the topics exist."""
MOST_PARTITIONS: Final = 1000

MAX_FOREIGN_BYTES: Final = 1024 * 1024 + 64 * 1024
"""Greatest record that an ordinary topic accepts: more than any of ours, so that a foreign one is dead-lettered."""
MAX_DEAD_LETTER_BYTES: Final = 2 * 1024 * 1024
"""Greatest dead letter: four thirds of the above and some room, for a record of any bytes in base64."""

SEGMENT_MS: Final = 24 * 3600 * 1000
"""Age at which a segment is closed; only closed segments are deleted."""

Cleanup = Literal["delete", "compact"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of the contract. At the broker its name is `prefix + name`."""

    name: str
    keyed_by: str
    retention: timedelta | None = None
    partitions: int | None = None
    """`None`: as many as every keyed topic of the shop, so that a key has one partition number everywhere."""

    @property
    def cleanup(self) -> Cleanup:
        """`delete` (by age) with a retention, else `compact`: the last state of each key is kept."""
        return "delete" if self.retention else "compact"

    @property
    def dead_letter_topic(self) -> "Topic":
        """Topic of this topic's dead letters: one partition, keyed like the originals."""
        return Topic(f"{self.name}.dlq", self.keyed_by, timedelta(days=7), partitions=1)

    def config(self) -> dict[str, str]:
        """Return the broker's settings for this topic, by their Kafka names."""
        if self.retention is None:
            return {
                "cleanup.policy": "compact",
                "segment.bytes": "1048576",
                "min.cleanable.dirty.ratio": "0.1",
                "max.compaction.lag.ms": "60000",
            }
        # An ordinary topic also accepts records that are too big for the services; the dead letter gives the reason.
        limit = MAX_DEAD_LETTER_BYTES if self.name.endswith(".dlq") else MAX_FOREIGN_BYTES
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(int(self.retention.total_seconds() * 1000)),
            # Retention deletes whole segments. With Kafka's default of a week for a segment, a quiet topic would keep
            # records for two weeks: longer than the request log keeps their outcomes.
            "segment.ms": str(SEGMENT_MS),
            "max.message.bytes": str(limit),
        }
