"""Connection options of every Kafka client: addresses, TLS and SASL, from the settings, in one place.

| client | function |
|---|---|
| aiokafka's producers, consumers and admin clients | `client_options` |
| Faust | `credentials` in `faust/app.py` |
| Kafka's own tools | `java_properties` |
| plain sockets, for probes | `tls_context` |
"""

import ssl
from pathlib import Path
from typing import Any

from infrastructure.process.java_properties import escape_property
from infrastructure.process.settings import Settings


def client_options(settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments with which aiokafka connects: where to, and how."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka,
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.uses_kafka_tls:
        options["ssl_context"] = tls_context(settings)
    if settings.uses_kafka_sasl:
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": password(settings),
        }
    return options


def tls_context(settings: Settings) -> ssl.SSLContext:
    """Return a context that verifies the broker's certificate and name, and presents ours if there is one."""
    context = ssl.create_default_context(cafile=settings.kafka_ca_file or None)
    if settings.kafka_certificate_file:
        key_password = settings.kafka_key_password.get_secret_value() if settings.kafka_key_password else None
        context.load_cert_chain(settings.kafka_certificate_file, settings.kafka_key_file, key_password)
    return context


def java_properties(settings: Settings) -> str:
    """Return the same options as a properties file of Kafka's own clients. It contains the secrets."""
    properties: dict[str, str] = {"security.protocol": settings.kafka_security_protocol}
    if settings.kafka_ca_file:
        properties |= {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": Path(settings.kafka_ca_file).read_text(),
        }
    if settings.kafka_certificate_file:
        properties |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": Path(settings.kafka_certificate_file).read_text(),
            "ssl.keystore.key": Path(settings.kafka_key_file).read_text(),
        }
        if settings.kafka_key_password:
            properties["ssl.key.password"] = settings.kafka_key_password.get_secret_value()
    if settings.uses_kafka_sasl:
        kind = "plain.Plain" if settings.kafka_sasl_mechanism == "PLAIN" else "scram.Scram"
        login = f"username={_quote(settings.kafka_username)} password={_quote(password(settings))}"
        properties |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.jaas.config": f"org.apache.kafka.common.security.{kind}LoginModule required {login};",
        }
    return "".join(f"{name}={escape_property(value)}\n" for name, value in properties.items())


def _quote(text: str) -> str:
    """Return a value quoted for a JAAS configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def password(settings: Settings) -> str:
    """Return the password of the client; empty without SASL."""
    return settings.kafka_password.get_secret_value() if settings.kafka_password else ""
