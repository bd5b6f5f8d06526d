"""Variables of other programs do not reach us, and each process receives only the secrets that it uses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infrastructure.local.servers.server import server_environment
from infrastructure.local.state import Root, postgres_variables
from infrastructure.local.supervision import services
from infrastructure.messaging.faust.app import create_app
from infrastructure.process.environment import SECRETS, child_environment, foreign_variables
from infrastructure.process.settings import Settings

FOREIGN = {
    "BROKER_URL": "amqp://guest@localhost//",
    "KAFKA_OPTS": "-Dx=y",
    "FAUST_LOOP": "gevent",
    "F_DATADIR": "/tmp/elsewhere",
    "F_BLOCKING_TIMEOUT": "1",
    "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
    "LOG4J_CONFIGURATION_FILE": "/tmp/elsewhere.xml",
    "DJANGO_SETTINGS_MODULE": "other.settings",
    "PROMETHEUS_MULTIPROC_DIR": "/tmp/elsewhere",
    "prometheus_multiproc_dir": "/tmp/elsewhere",
    "UVICORN_HOST": "0.0.0.0",
    "WEB_CONCURRENCY": "4",
    "FORWARDED_ALLOW_IPS": "*",
    "JAVA_TOOL_OPTIONS": "-Xmx1m",
    "JDK_JAVA_OPTIONS": "-Xmx1m",
    "_JAVA_OPTIONS": "-Xmx1m",
    "SSLKEYLOGFILE": "/tmp/keys",
    "WEBSOCKETS_MAX_LINE_LENGTH": "1",
    "AIOKAFKA_NO_EXTENSIONS": "1",
    "PGHOST": "elsewhere",
    "PGHOSTADDR": "192.0.2.1",
    "PGSERVICE": "other",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGSSLMODE": "require",
    "PGDATA": "/tmp/elsewhere",
}
OURS = {"PATH": "/bin", "HOME": "/home/x", "LANG": "C", "HOLDFAST_KAFKA": "k:1", "HTTPS_PROXY": "http://proxy:1"}


def test_variables_of_other_programs_are_left_out() -> None:
    url = {"HOLDFAST_POSTGRES_URL": "postgresql://127.0.0.1/shop"}
    assert foreign_variables(FOREIGN | OURS | url) == FOREIGN.keys()
    assert child_environment(url, inherited=FOREIGN | OURS) == OURS | url


def test_libpqs_variables_name_the_database_if_nothing_else_does() -> None:
    assert foreign_variables({"PGHOST": "db", "BROKER_URL": "x"}) == {"BROKER_URL"}
    assert foreign_variables({"PGHOST": "db", "HOLDFAST_POSTGRES_URL": ""}) == set()
    assert foreign_variables({"PGHOST": "db", "HOLDFAST_POSTGRES_URL_FILE": "f"}) == {"PGHOST"}


def test_a_server_gets_no_secret_and_no_variable_of_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (FOREIGN | dict.fromkeys(SECRETS, "secret")).items():
        monkeypatch.setenv(name, value)
    given = server_environment({"LC_ALL": "C.UTF-8"})
    assert not given.keys() & (FOREIGN.keys() | SECRETS)
    assert given["LC_ALL"] == "C.UTF-8"


@pytest.mark.parametrize("kind", services.SERVICE_TYPES, ids=lambda kind: kind.name)
def test_a_worker_gets_only_its_own_secrets(
    kind: services.ServiceType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name.lower(), "of the operator's shell, in any case of letters")
        monkeypatch.setenv(f"{name}_FILE", "/a/file")
    given = services.WorkerProcess(Root(tmp_path), kind, kind.name, 1, dict.fromkeys(SECRETS, "x")).environment()
    assert {name for name in given if name.upper().removesuffix("_FILE") in SECRETS} == kind.secrets | {
        f"{name}_FILE" for name in kind.secrets
    }
    assert services.module_environment(kind.module, dict.fromkeys(SECRETS, "x")).keys() == kind.secrets


def test_only_the_edge_and_accounts_can_sign_tokens_and_only_payment_can_pay() -> None:
    holders = {
        secret: {kind.name for kind in services.SERVICE_TYPES if f"HOLDFAST_{secret}" in kind.secrets}
        for secret in ("SECRET", "ACCOUNTS_SECRET", "WEBHOOK_SECRET", "PROVIDER_KEY", "SMTP_URL", "REDIS_URL")
    }
    names = {kind.name for kind in services.SERVICE_TYPES}
    for secret, strangers in {
        "POSTGRES_URL": {"cart", "provider", "catcher"},
        "KAFKA_PASSWORD": {"email", "sms", "provider", "catcher"},
        "KAFKA_KEY_PASSWORD": {"email", "sms", "provider", "catcher"},
    }.items():
        holders[secret] = {kind.name for kind in services.SERVICE_TYPES if f"HOLDFAST_{secret}" in kind.secrets}
        assert holders.pop(secret) == names - strangers, secret
    assert holders == {
        "SECRET": {"accounts", "edge"},
        "ACCOUNTS_SECRET": {"accounts"},
        "WEBHOOK_SECRET": {"edge", "provider"},
        "PROVIDER_KEY": {"payment", "provider"},
        "SMTP_URL": {"email"},
        "REDIS_URL": {"edge", "inventory"},
    }


@pytest.mark.parametrize("kind", services.SERVICE_TYPES, ids=lambda kind: kind.name)
def test_the_settings_of_a_worker_without_a_password_are_complete(
    kind: services.ServiceType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In an operator's shell that names a broker with a password, and a database by the variables of libpq."""
    for name, value in {
        "HOLDFAST_KAFKA": "kafka.example:9093",
        "HOLDFAST_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "HOLDFAST_KAFKA_USERNAME": "shop",
        "HOLDFAST_KAFKA_PASSWORD": "p",
        "HOLDFAST_REDIS_URL": "rediss://redis.example",
        "PGHOST": "db.example",
        "PGPASSWORD": "p",
        "PGSSLMODE": "verify-full",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HOLDFAST_POSTGRES_URL", raising=False)
    given = services.WorkerProcess(Root(tmp_path), kind, kind.name, 1, {}).environment()
    uses_kafka, uses_postgres = ("HOLDFAST_KAFKA_PASSWORD" in given, "PGPASSWORD" in given)
    assert uses_kafka == ("HOLDFAST_KAFKA_PASSWORD" in kind.secrets)
    assert uses_postgres == ("HOLDFAST_POSTGRES_URL" in kind.secrets)
    for name in [*os.environ]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Settings(profile="production").uses_kafka_sasl == uses_kafka


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_URL", "amqp://guest@localhost//"),
        ("BROKER_CONSUMER_URL", "kafka://elsewhere:9"),
        ("BROKER_PRODUCER_URL", "kafka://elsewhere:9"),
        ("BROKER_CREDENTIALS", "nonsense"),
        ("APP_ENV_PREFIX", "X_"),
        ("APP_ID_FORMAT", "{id}-x"),
        ("CONSUMER_GROUP_INSTANCE_ID", "another"),
        ("CONSUMER_AUTO_OFFSET_RESET", "latest"),
        ("PRODUCER_ACKS", "0"),
        ("PROCESSING_GUARANTEE", "exactly_once"),
        ("TOPIC_PARTITIONS", "1"),
        ("TOPIC_ALLOW_DECLARE", "true"),
        ("TABLE_STANDBY_REPLICAS", "3"),
        ("STREAM_BUFFER_MAXSIZE", "1"),
        ("APP_STORE", "rocksdb://"),
        ("APP_WEB_ENABLED", "true"),
    ],
)
def test_fausts_settings_are_ours_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> dict[str, str]:
        conf = create_app(Settings(), "cart").conf
        return {each: str(getattr(conf, each)) for each in sorted(conf.setting_names()) if each != "reply_to"}  # random

    before = shown()
    monkeypatch.setenv(name, value)
    assert shown() == before


def test_a_process_started_by_hand_ignores_them_before_a_library_reads_them() -> None:
    program = (
        "import os, infrastructure.messaging.worker\n"
        "from infrastructure.storage.postgres import conninfo\n"
        "conninfo('postgresql://127.0.0.1/x')\n"
        f"print(sorted(set(os.environ) & {set(FOREIGN)!r}))"
    )
    environment = {**os.environ, **FOREIGN, **services.python_path(), "HOLDFAST_POSTGRES_URL": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    # FAUST_LOOP=gevent would have ended the import, as gevent is not installed; Faust itself leaves its variables.
    assert done.returncode == 0, done.stderr
    assert not set(eval(done.stdout)) - {"FAUST_LOOP", "F_LOOP"}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("infrastructure.process.health", "PROMETHEUS_MULTIPROC_DIR"),
        ("infrastructure.observability.metrics", "prometheus_multiproc_dir"),
        ("notification_service.email.__main__", "PROMETHEUS_MULTIPROC_DIR"),
    ],
)
def test_a_process_started_by_hand_keeps_its_metrics_to_itself(module: str, name: str) -> None:
    program = f"import {module}; from prometheus_client import values; print(values.ValueClass.__name__)"
    environment = {**os.environ, name: "/no/such/folder", **services.python_path()}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "MutexValue\n"), done.stderr


def test_psql_connects_as_the_url_says() -> None:
    url = "postgresql://shop%40x:p%2Fw@db.example:6432/the%20shop?sslmode=verify-full&sslrootcert=%2Fca.pem&application_name=a"
    assert postgres_variables(url) == {
        "PGHOST": "db.example",
        "PGPORT": "6432",
        "PGUSER": "shop@x",
        "PGPASSWORD": "p/w",
        "PGDATABASE": "the shop",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca.pem",
        "PGAPPNAME": "a",
    }
