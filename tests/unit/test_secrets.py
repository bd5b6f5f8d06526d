"""Secrets in settings: who has them, how they are given, and what production requires of them and of connections."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from account_service.settings import Settings as AccountSettings
from infrastructure.local import errors, state
from infrastructure.local.state import Root
from infrastructure.process.environment import SECRETS
from infrastructure.process.private_files import create_private_directory, create_private_file, write_private_file
from infrastructure.process.settings import Settings, explain
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from inventory_service.settings import Settings as InventorySettings
from notification_service.settings import Settings as NoticeSettings
from order_service.delivery.settings import Settings as DeliverySettings
from order_service.insights.settings import Settings as InsightSettings
from order_service.payment.settings import DEVELOPMENT_KEY
from order_service.payment.settings import Settings as PaymentSettings
from order_service.settings import Settings as OrderSettings
from rest_api.settings import EdgeSettings

WORKERS = [Settings, InventorySettings, OrderSettings, DeliverySettings, InsightSettings, NoticeSettings]
EDGE: dict[str, Any] = {"profile": "production", "secret": "s" * 32, "webhook_secret": "w" * 32}
ACCOUNTS: dict[str, Any] = {"profile": "production", "secret": "s" * 32, "accounts_secret": "a" * 32}
PAYMENT: dict[str, Any] = {"profile": "production", "provider_key": "k" * 32, "provider_url": "https://pay.example"}
SASL: dict[str, Any] = {
    "kafka_security_protocol": "SASL_SSL",
    "kafka": "kafka.example:9093",
    "kafka_username": "shop",
    "kafka_password": "p",
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("kind", WORKERS, ids=lambda kind: kind.__module__)
def test_a_worker_needs_and_knows_no_secret_of_the_edge_in_production(kind: type[Settings]) -> None:
    kind(profile="production")
    assert not {"secret", "secret_previous", "webhook_secret", "provider_key"} & kind.model_fields.keys()


@pytest.mark.parametrize(
    ("kind", "given", "change", "sentence"),
    [
        (EdgeSettings, EDGE, {"secret": DEVELOPMENT_SECRET}, "HOLDFAST_SECRET must be set"),
        (EdgeSettings, EDGE, {"secret_previous": DEVELOPMENT_SECRET}, "HOLDFAST_SECRET must be set"),
        (EdgeSettings, EDGE, {"webhook_secret": DEVELOPMENT_SECRET}, "HOLDFAST_WEBHOOK_SECRET must be set"),
        (EdgeSettings, EDGE, {"webhook_secret": "s" * 32}, "must be different secrets"),
        (EdgeSettings, EDGE, {"secret_previous": "w" * 32}, "must be different secrets"),
        (EdgeSettings, EDGE, {"accounts_url": "http://10.0.0.1:1"}, "HOLDFAST_ACCOUNTS_URL is http://10.0.0.1"),
        (AccountSettings, ACCOUNTS, {"accounts_secret": DEVELOPMENT_SECRET}, "HOLDFAST_ACCOUNTS_SECRET must be set"),
        (AccountSettings, ACCOUNTS, {"accounts_secret": "s" * 32}, "must be different secrets"),
        (AccountSettings, ACCOUNTS, {"secret": DEVELOPMENT_SECRET}, "HOLDFAST_SECRET must be set"),
        (EdgeSettings, EDGE, {"limits": "off"}, "HOLDFAST_LIMITS is off"),
        (EdgeSettings, EDGE, {"kafka": "kafka.example:9092"}, "kafka at kafka.example would be reached without TLS"),
        (EdgeSettings, EDGE, {"kafka": "127.0.0.1:1,10.0.0.1:2"}, "kafka at 10.0.0.1 would be reached without TLS"),
        (EdgeSettings, EDGE, SASL | {"kafka_security_protocol": "SASL_PLAINTEXT"}, "kafka at kafka.example would"),
        (EdgeSettings, EDGE, {"redis_url": "redis://redis.example"}, "redis at redis.example would"),
        (EdgeSettings, EDGE, {"redis_url": "rediss://redis.example?ssl_cert_reqs=none"}, "remove ssl_cert_reqs=none"),
        (EdgeSettings, EDGE, {"postgres_url": "postgresql://db.example/x"}, "postgres at db.example would"),
        (EdgeSettings, EDGE, {"postgres_url": "host=db.example"}, "postgres at db.example would"),
        (EdgeSettings, EDGE, {"postgres_url": "postgresql://127.0.0.1,db.example/x"}, "postgres at db.example would"),
        (EdgeSettings, EDGE, {"postgres_url": "postgresql://db.example/x?sslmode=prefer"}, "postgres at db.example"),
        (EdgeSettings, EDGE, {"postgres_url": "postgresql://db.example/x?sslmode=require"}, "postgres at db.example"),
        (EdgeSettings, EDGE, {"postgres_url": "postgresql://127.0.0.1/x?hostaddr=10.0.0.1"}, "postgres at 10.0.0.1"),
        (EdgeSettings, EDGE, {"allow_plaintext": "kafka,everything"}, "HOLDFAST_ALLOW_PLAINTEXT names 'everything'"),
        (PaymentSettings, PAYMENT, {"provider_key": DEVELOPMENT_KEY}, "HOLDFAST_PROVIDER_KEY must be set"),
        (PaymentSettings, PAYMENT, {"provider_url": "http://pay.example"}, "sends the API key over TLS only"),
        (Settings, {}, {"kafka_security_protocol": "SASL_SSL"}, "requires HOLDFAST_KAFKA_USERNAME and"),
        (Settings, SASL, {"kafka_password": None}, "requires HOLDFAST_KAFKA_USERNAME and"),
        (Settings, {}, {"kafka_password": "p"}, "would not use it: set the protocol to SASL_SSL"),
        (Settings, {}, {"kafka_ca_file": __file__}, "would not use it: set the protocol to SSL or SASL_SSL"),
        (Settings, SASL, {"kafka_ca_file": "/no/such/file"}, "HOLDFAST_KAFKA_CA_FILE names /no/such/file"),
        (Settings, SASL, {"kafka_key_file": __file__}, "are set together or not at all"),
    ],
)
def test_unsafe_and_half_settings_are_refused_in_a_sentence_without_the_secret(
    kind: type[Settings], given: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    kind(**given)
    with pytest.raises(ValidationError) as caught:
        kind(**(given | change))
    said = explain(caught.value)
    assert sentence in said
    for text in (said, str(caught.value)):
        assert not any(secret in text for secret in ("s" * 32, "w" * 32, "k" * 32))


@pytest.mark.parametrize(
    "given",
    [
        SASL,
        {"kafka": "kafka.example:9093", "kafka_security_protocol": "SSL"},
        {"kafka": "kafka.example:9092", "allow_plaintext": "kafka"},
        {"kafka": "localhost:1, [::1]:2"},
        {"redis_url": "rediss://:p@redis.example:6380/0"},
        {"redis_url": "redis://redis.example", "allow_plaintext": "postgres, redis"},
        {"redis_url": "unix:///run/redis.sock"},
        {"postgres_url": "postgresql://db.example/x?sslmode=verify-full"},
        {"postgres_url": "postgresql://db.example/x?sslmode=verify-ca&sslrootcert=/ca.pem"},
        {"postgres_url": "postgresql://%2Frun%2Fpostgresql/x"},
        {"postgres_url": "postgresql://db.example/x", "allow_plaintext": "postgres"},
        {"postgres_url": ""},
    ],
    ids=str,
)
def test_production_accepts_tls_this_machine_and_what_is_allowed(given: dict[str, Any]) -> None:
    assert Settings(profile="production", **given).profile == "production"


def test_the_variables_of_libpq_count_if_they_name_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    with pytest.raises(ValidationError, match=r"postgres at db\.example"):
        Settings(profile="production")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    Settings(profile="production")


def test_a_secret_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    for name, kind in (("SECRET", EdgeSettings), ("PROVIDER_KEY", PaymentSettings), ("POSTGRES_URL", Settings)):
        file.write_text("postgresql://127.0.0.1/0123456789abcdef\r\n")
        with monkeypatch.context() as patched:
            patched.setenv(f"HOLDFAST_{name}_FILE", str(file))
            found = getattr(kind(), name.lower())
            assert (found if isinstance(found, str) else found.get_secret_value()).endswith("abcdef")
            patched.setenv(f"HOLDFAST_{name}", "postgresql://127.0.0.1/the-variable-itself")
            found = getattr(kind(), name.lower())
            assert (found if isinstance(found, str) else found.get_secret_value()).endswith("itself")


def test_a_secret_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SECRET_FILE", "/no/such/file")
    with pytest.raises(ValueError, match="HOLDFAST_SECRET_FILE names /no/such/file, which cannot be read"):
        EdgeSettings()


def test_every_secret_setting_is_known_as_one() -> None:
    kinds: list[type[Settings]] = [EdgeSettings, AccountSettings, PaymentSettings, *WORKERS]
    hidden = {
        f"HOLDFAST_{name.upper()}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    assert hidden | {"HOLDFAST_POSTGRES_URL", "HOLDFAST_REDIS_URL"} == SECRETS


# ---- the root directory ---------------------------------------------------------------------------------------------


def test_each_root_has_secrets_of_its_own_all_different(tmp_path: Path) -> None:
    made = [Root(tmp_path / name) for name in ("a", "b")]
    for root in made:
        root.create()
    found = [value for root in made for value in vars(root.secrets()).values()]
    assert len(set(found)) == len(found) == 12
    assert not {DEVELOPMENT_SECRET, DEVELOPMENT_KEY} & set(found)


def test_a_root_of_an_earlier_version_keeps_its_secrets_and_gets_the_missing_ones(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.create()
    write_private_file(tmp_path / "secrets.json", '{"postgres": "p", "redis": "r", "signing": "s"}')
    first = root.secrets()
    assert (first.postgres, first.redis, first.signing) == ("p", "r", "s")
    assert first.webhooks != first.provider_key
    assert root.secrets() == first
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("link", [False, True])
def test_the_root_of_another_user_is_refused_unless_it_is_named(
    link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    found = tmp_path / ".holdfast"
    if link:
        (tmp_path / "real").mkdir()
        found.symlink_to(tmp_path / "real")
    else:
        found.mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert state.find_root().path == found.resolve()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(errors.UsageError, match=r"belongs to user id .*HOLDFAST_ROOT"):
        state.find_root()
    monkeypatch.setenv("HOLDFAST_ROOT", str(found))
    assert state.find_root().path == found.resolve()


def test_directories_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_private_directory(tmp_path / "a/b/c")
        create_private_file(tmp_path / "d/file")
        write_private_file(tmp_path / "e/file", "x")
        Root(tmp_path / "f/g").create()
    finally:
        os.umask(old)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    for name in ("a", "a/b", "a/b/c", "d", "e", "f/g", "f/g/logs", "f/g/run"):
        assert modes[name] == 0o700, name
    for name in ("d/file", "e/file"):
        assert modes[name] == 0o600, name
