"""Settings of all services, read from environment variables with the prefix `HOLDFAST_`."""

import os
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from contracts.topics import MOST_PARTITIONS, PARTITIONS, Topic
from infrastructure.process.environment import FILE_SUFFIX, PREFIX, SECRETS
from infrastructure.process.loopback import is_loopback_address, resolves_to_loopback

Server = Literal["kafka", "postgres", "redis", "smtp", "provider", "accounts"]


class SecretFiles(PydanticBaseSettingsSource):
    """Source of the secrets that are given in files: `HOLDFAST_SECRET_FILE` names the file of `HOLDFAST_SECRET`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the content of the file of one setting, without the line end; `None` if no file is named."""
        del field
        variable = PREFIX + field_name.upper()
        named = next((value for name, value in os.environ.items() if name.upper() == variable + FILE_SUFFIX), "")
        if variable not in SECRETS or not named:
            return None, field_name, False
        try:
            return Path(named).read_text(encoding="utf-8").rstrip("\r\n"), field_name, False
        except (OSError, UnicodeError) as error:
            raise SettingsError(f"{variable}{FILE_SUFFIX} names {named}, which cannot be read: {error}") from error

    def __call__(self) -> dict[str, Any]:
        """Return the values of all settings that are given in files."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """Addresses, names and limits that all services share. Each service adds its own in its `settings.py`."""

    # A rejected value may be a secret, so errors do not repeat it.
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    profile: Literal["local", "production"] = "local"
    kafka: str = Field(default="127.0.0.1:9092", description="bootstrap servers: host:port, comma-separated")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how clients connect to Kafka; SSL means TLS"
    )
    kafka_ca_file: str = Field(default="", description="CA certificates of the brokers, PEM; empty: the system's")
    kafka_certificate_file: str = Field(default="", description="certificate chain of the client, PEM")
    kafka_key_file: str = Field(default="", description="private key of the client's certificate, PEM")
    kafka_key_password: SecretStr | None = Field(default=None, description="password of an encrypted private key")
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_username: str = ""
    kafka_password: SecretStr | None = None
    postgres_url: str = Field(default="", description="a libpq URL; empty: libpq's own PG… variables")
    redis_url: str = Field(default="redis://127.0.0.1:6379/0")
    prefix: str = Field(
        default="",
        pattern=r"^[a-z0-9._-]{0,32}$",
        description="prefix of all topics, schemas, Redis keys and consumer groups, so that several shops can coexist",
    )
    allow_plaintext: str = Field(
        default="",
        description="comma-separated servers (kafka, postgres, redis, smtp, provider, accounts) that production may use"
        " without TLS",
    )
    replica: str = Field(
        default="solo",
        pattern=r"^[a-z0-9-]{1,40}$",
        description="stable name of this process: its identity in the consumer group",
    )
    health_host: str = "127.0.0.1"
    health_port: int = Field(default=0, ge=0, le=65535, description="0: any free one")
    state_dir: str = Field(default=".holdfast/run/solo", description="folder of this replica's lock file")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    audit_grace_seconds: float = Field(
        default=30, ge=0, description="seconds that a request may be without an outcome before the audit reports it"
    )
    audit_seconds: float = Field(
        default=60, ge=0, description="seconds between two background audits, in services that have one; 0: no audits"
    )
    dead_letter_limit_per_minute: int = Field(
        default=1000,
        ge=0,
        description="dead letters per minute of one topic at which a worker stops, if the share is exceeded too; 0: no"
        " limit",
    )
    dead_letter_limit_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of a topic's records within a minute, from 0 to 1, that must be exceeded as well",
    )
    replication: int = Field(default=1, ge=1, description="copies of each Kafka partition")
    partitions: int = Field(
        default=PARTITIONS,
        ge=1,
        le=MOST_PARTITIONS,
        description="partitions of each keyed topic; the same for all processes, and fixed once the topics exist",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings, the strongest first."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, SecretFiles(settings_cls)

    def topic(self, topic: Topic) -> str:
        """Return the broker's name of `topic` in this shop."""
        return self.prefix + topic.name

    def partitions_of(self, topic: Topic) -> int:
        """Return the number of partitions of `topic` in this shop."""
        return self.partitions if topic.partitions is None else topic.partitions

    def schema_name(self, service: str) -> str:
        """Return the Postgres schema of `service` in this shop."""
        return (self.prefix + service).replace(".", "_").replace("-", "_")

    @property
    def uses_kafka_tls(self) -> bool:
        """True if connections to Kafka are encrypted."""
        return self.kafka_security_protocol.endswith("SSL")

    @property
    def uses_kafka_sasl(self) -> bool:
        """True if clients of Kafka authenticate with a name and a password."""
        return self.kafka_security_protocol.startswith("SASL")

    def requires_tls(self, server: Server, host: str) -> bool:
        """Return whether a connection to `host` must be encrypted: in production, unless it stays on this machine."""
        return self.profile == "production" and not is_loopback_address(host) and server not in self._plaintext_servers

    @property
    def _plaintext_servers(self) -> set[str]:
        return {name.strip() for name in self.allow_plaintext.split(",")} - {""}

    @model_validator(mode="after")
    def _listen_on_loopback_only_in_the_local_profile(self) -> Self:
        for name in type(self).model_fields:
            if self.profile != "local" or not name.endswith("_host"):
                continue
            host = getattr(self, name)
            if not resolves_to_loopback(host):
                raise ValueError(
                    f"{PREFIX}{name.upper()} is {host!r}, and the local profile listens on this machine only, because"
                    " its tools trust everybody who can connect: set it to 127.0.0.1, or set"
                    " HOLDFAST_PROFILE=production, which requires secrets of your own and TLS to the servers"
                    " (SECURITY.md)"
                )
        return self

    @model_validator(mode="after")
    def _kafka_security_is_complete(self) -> Self:
        if self.uses_kafka_sasl and not (self.kafka_username and self.kafka_password):
            raise ValueError(
                f"HOLDFAST_KAFKA_SECURITY_PROTOCOL is {self.kafka_security_protocol}, which requires"
                " HOLDFAST_KAFKA_USERNAME and HOLDFAST_KAFKA_PASSWORD (or HOLDFAST_KAFKA_PASSWORD_FILE)"
            )
        if not self.uses_kafka_sasl and self.kafka_password:
            raise ValueError(
                f"HOLDFAST_KAFKA_PASSWORD is set, and HOLDFAST_KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol}"
                " would not use it: set the protocol to SASL_SSL"
            )
        if bool(self.kafka_certificate_file) != bool(self.kafka_key_file):
            raise ValueError(
                "HOLDFAST_KAFKA_CERTIFICATE_FILE and HOLDFAST_KAFKA_KEY_FILE are set together or not at all"
            )
        for name in ("kafka_ca_file", "kafka_certificate_file", "kafka_key_file"):
            file = getattr(self, name)
            if file and not self.uses_kafka_tls:
                raise ValueError(
                    f"{PREFIX}{name.upper()} is set, and HOLDFAST_KAFKA_SECURITY_PROTOCOL="
                    f"{self.kafka_security_protocol} would not use it: set the protocol to SSL or SASL_SSL"
                )
            if file and not os.access(file, os.R_OK):
                raise ValueError(f"{PREFIX}{name.upper()} names {file}, which cannot be read")
        return self

    @model_validator(mode="after")
    def _servers_are_reached_by_tls_in_production(self) -> Self:
        if unknown := self._plaintext_servers.difference(get_args(Server)):
            raise ValueError(
                f"HOLDFAST_ALLOW_PLAINTEXT names {min(unknown)!r}: expected {', '.join(get_args(Server))},"
                " comma-separated"
            )
        if self.profile != "production":
            return self
        if not self.uses_kafka_tls:
            for address in self.kafka.split(","):
                self._require_tls("kafka", urlsplit(f"//{address.strip()}").hostname or "", _KAFKA_REMEDY)
        redis = urlsplit(self.redis_url)
        if redis.scheme == "redis":
            self._require_tls("redis", redis.hostname or "127.0.0.1", "use rediss:// in HOLDFAST_REDIS_URL")
        unverified = {"ssl_cert_reqs": ("none", "optional"), "ssl_check_hostname": ("false", "no", "0", "f", "n")}
        for name, value in parse_qsl(redis.query):
            if value.lower() in unverified.get(name, ()):
                remedy = f"remove {name}={value} from HOLDFAST_REDIS_URL, so that the certificate is verified"
                self._require_tls("redis", redis.hostname or "127.0.0.1", remedy)
        for host in _plaintext_postgres_hosts(self.postgres_url):
            self._require_tls("postgres", host, "add sslmode=verify-full to HOLDFAST_POSTGRES_URL")
        return self

    def _require_tls(self, server: Server, host: str, remedy: str) -> None:
        if self.requires_tls(server, host):
            raise ValueError(
                f"{server} at {host} would be reached without TLS, which production refuses: {remedy}, or add {server}"
                " to HOLDFAST_ALLOW_PLAINTEXT if the network between is private"
            )


_KAFKA_REMEDY = "set HOLDFAST_KAFKA_SECURITY_PROTOCOL to SASL_SSL or SSL"


def _plaintext_postgres_hosts(url: str) -> list[str]:
    """Return the hosts that libpq would connect to without checking a certificate; Unix sockets are left out."""
    from psycopg.conninfo import conninfo_to_dict  # loads libpq, which not every process needs

    given = conninfo_to_dict(url)
    mode = str(given.get("sslmode") or (not url and os.environ.get("PGSSLMODE")) or "prefer")
    if mode in {"verify-ca", "verify-full"}:
        return []
    hosts = str(given.get("hostaddr") or given.get("host") or (not url and os.environ.get("PGHOST")) or "")
    return [host for host in hosts.split(",") if host and not host.startswith(("/", "@"))]


def explain(error: ValidationError | SettingsError) -> str:
    """Return the problems with the settings as sentences for the operator. They never contain a rejected value."""
    if isinstance(error, SettingsError):
        return str(error)
    return "; ".join(
        str(each["ctx"]["error"])
        if each["type"] == "value_error"
        else f"{PREFIX}{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}"
        for each in error.errors(include_url=False, include_input=False)
    )
