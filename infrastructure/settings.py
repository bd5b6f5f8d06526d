"""What every service is told from outside, by environment variables that begin with `HOLDFAST_`."""

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infrastructure.topics import MOST_PARTITIONS, PARTITIONS, Topic

DEVELOPMENT_SECRET = "development-secret-that-no-production-shop-accepts"  # noqa: S105 - refused by the production profile


class Settings(BaseSettings):
    """Addresses, names and limits shared by all services; each service adds its own in its `settings.py`."""

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", extra="ignore", frozen=True)

    profile: Literal["local", "production"] = "local"
    kafka: str = Field(default="127.0.0.1:9092", description="bootstrap servers: host:port, comma-separated")
    postgres_url: str = Field(default="", description="a libpq URL; empty: libpq's own PG… variables")
    redis_url: str = Field(default="redis://127.0.0.1:6379/0")
    prefix: str = Field(
        default="",
        pattern=r"^[a-z0-9._-]{0,32}$",
        description="before every topic, schema, Redis key and group name, so that several shops live side by side",
    )
    secret: SecretStr = Field(default=SecretStr(DEVELOPMENT_SECRET), min_length=32, description="signs tokens")
    secret_previous: SecretStr | None = Field(
        default=None, min_length=32, description="while keys are rotated: what signed before, and still counts"
    )
    webhook_secret: SecretStr = Field(
        default=SecretStr(DEVELOPMENT_SECRET), min_length=32, description="signs the payment provider's webhooks"
    )
    replica: str = Field(default="solo", pattern=r"^[a-z0-9-]{1,40}$", description="this process's stable name")
    health_host: str = "127.0.0.1"
    health_port: int = Field(default=0, ge=0, le=65535, description="0: any free one")
    state_dir: str = Field(default=".holdfast/run/solo", description="where this replica keeps its lock file")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    audit_grace_seconds: float = Field(
        default=30, ge=0, description="a request may be without an outcome for this long before the audit complains"
    )
    audit_seconds: float = Field(
        default=60, ge=0, description="seconds between two audits beside the shop, of those that have one; 0: none"
    )
    replication: int = Field(default=1, ge=1, description="copies of each Kafka partition")
    partitions: int = Field(
        default=PARTITIONS,
        ge=1,
        le=MOST_PARTITIONS,
        description="partitions of each keyed topic; the same for all processes, and fixed once the topics exist",
    )

    def topic(self, topic: Topic) -> str:
        """The broker's name of `topic` in this shop."""
        return self.prefix + topic.name

    def partitions_of(self, topic: Topic) -> int:
        """Return the number of partitions of `topic` in this shop."""
        return self.partitions if topic.partitions is None else topic.partitions

    def schema_name(self, service: str) -> str:
        """The Postgres schema of `service` in this shop."""
        return (self.prefix + service).replace(".", "_").replace("-", "_")

    @model_validator(mode="after")
    def _production_has_its_own_secret(self) -> Self:
        secrets = [secret.get_secret_value() for secret in (self.secret, self.secret_previous) if secret]
        if self.profile == "production" and DEVELOPMENT_SECRET in secrets:
            raise ValueError("HOLDFAST_SECRET must be set to a secret of at least 32 characters in production")
        if self.profile == "production" and self.webhook_secret.get_secret_value() == DEVELOPMENT_SECRET:
            raise ValueError("HOLDFAST_WEBHOOK_SECRET must be set to the payment provider's own in production")
        return self
