"""Faust app with the settings that proved reliable; docs/adr/0002-faust.md has the reason of each."""

import faust
from faust.auth import Credentials, SASLCredentials, SSLCredentials
from faust.tables import recovery
from faust.types import TP

from contracts.topics import MAX_DEAD_LETTER_BYTES
from infrastructure.messaging.broker import partition_of
from infrastructure.messaging.kafka_security import password, tls_context
from infrastructure.process.settings import Settings

_on_recovery_completed = recovery.Recovery.on_recovery_completed
_resume_streams = recovery.Recovery._resume_streams  # noqa: SLF001 - the same without tables, with the same fault


async def _without_fetching(self: recovery.Recovery, generation_id: int = 0) -> None:
    # Faust resumes partitions before it has sought back to the committed offsets. Records that are fetched in between
    # look like a gap, and commits stop or lag (faust-streaming#596). So nothing is fetched during the seek: the flow is
    # stopped here, and the original method resumes it.
    self.app.consumer.stop_flow()
    await _on_recovery_completed(self, generation_id)


async def _without_fetching_either(self: recovery.Recovery, generation_id: int = 0) -> None:
    self.app.consumer.stop_flow()
    await _resume_streams(self, generation_id)


def credentials(settings: Settings) -> Credentials | None:
    """Return the credentials with which Faust connects; `None` for a broker without TLS and passwords."""
    if settings.uses_kafka_sasl:
        return SASLCredentials(
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_username,
            password=password(settings),
            ssl_context=tls_context(settings) if settings.uses_kafka_tls else None,
        )
    return SSLCredentials(tls_context(settings)) if settings.uses_kafka_tls else None


class ShopApp(faust.App):
    """Faust app that fetches records at most once per `fetch_interval` seconds."""

    fetch_interval: float = 0.0


def create_app(settings: Settings, service: str, *, fetch_interval: float = 0.0) -> ShopApp:
    """Return a Faust app for one replica of `service`. Call it once, in the composition root."""
    setattr(recovery.Recovery, "on_recovery_completed", _without_fetching)  # noqa: B010 - visibly a patch
    setattr(recovery.Recovery, "_resume_streams", _without_fetching_either)  # noqa: B010 - visibly a patch
    app = ShopApp(
        settings.prefix + service,
        env={},  # or variables such as BROKER_URL, meant for other programs, would go before these settings
        broker_credentials=credentials(settings),
        broker=[f"holdfast://{address}" for address in settings.kafka.split(",")],
        datadir=f"{settings.state_dir}/faust",
        store="memory://",
        table_standby_replicas=0,
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        topic_allow_declare=False,
        topic_disable_leader=True,
        autodiscover=False,
        web_enabled=False,
        worker_redirect_stdouts=False,
        cython_optimizations=True,
        broker_commit_interval=1.0,  # a replay of what was done since is harmless
        broker_max_poll_records=500,
        broker_session_timeout=6.0,  # a broker's minimum by default; the partitions of a crashed worker wait for it
        broker_heartbeat_interval=0.5,  # the delay until members notice a rebalance
        broker_request_timeout=15.0,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=5_000,  # a broker that has just restarted may not list all topics to the leader
        consumer_group_instance_id=f"{settings.prefix}{settings.replica}",
        stream_buffer_maxsize=1024,
        producer_request_timeout=15.0,
        producer_max_request_size=MAX_DEAD_LETTER_BYTES + 64 * 1024,
    )
    app.fetch_interval = fetch_interval
    return app


class PartitionedTable:
    """Faust table of bytes by key, used as a cache: each write goes to the key's own partition.

    Faust itself takes the partition of a write from the current event, which a batch over several partitions lacks.
    """

    def __init__(self, app: faust.App, name: str) -> None:
        self.app = app
        self.table = app.Table(
            name,
            key_type=bytes,
            value_type=bytes,
            partitions=app.conf.topic_partitions,
            help="carts; a cache of the state in Postgres",
        )
        self.partitions = app.conf.topic_partitions
        self.changelog = f"{app.conf.id}-{name}-changelog"

    def get(self, key: bytes) -> bytes | None:
        """Return the value last written or recovered; `None` if there is none."""
        return self.table.data.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Store `value` and send it to the changelog. That write may be lost: the table is not a source of truth."""
        self.table.send_changelog(partition_of(key, self.partitions), key, value)
        self.table.data[key] = value

    def items(self) -> list[tuple[bytes, bytes]]:
        """Return the items of this worker's partitions. Faust keeps some keys of revoked ones as well."""
        mine = {tp.partition for tp in self.assigned_partitions() if tp.topic == self.changelog}
        return [(key, value) for key, value in self.table.data.items() if partition_of(key, self.partitions) in mine]

    def assigned_partitions(self) -> set[TP]:
        """Return this worker's partitions, including those of the changelog."""
        return set(self.app.consumer.assignment())
