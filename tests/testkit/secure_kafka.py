"""A Kafka broker with TLS, client certificates and passwords, and a certificate authority of its own."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trustme
from cryptography.hazmat.primitives import serialization

from infrastructure.local.commands.passthrough import KAFKA_TOOLS
from infrastructure.local.servers import port_reservations
from infrastructure.local.servers.kafka import LOCALE, Kafka, java_command
from infrastructure.local.state import Root
from tests.testkit.servers import bring

USER: Final = "shop"
PASSWORD: Final = 'a "quoted" \\ password; ü'
HOST: Final = "127.0.0.1"


@dataclass
class Certificates:
    """PEM files of a certificate authority, a client that it knows, and an authority that nobody trusts."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.ca = self._write("ca.pem", self.authority.cert_pem)
        self.other_ca = self._write("other-ca.pem", trustme.CA().cert_pem)
        self.server = self.authority.issue_cert(HOST, "localhost")
        client = self.authority.issue_cert("client.example")
        self.certificate = self._write("client.pem", *client.cert_chain_pems)
        self.key = self._write("client.key", trustme.Blob(_pkcs8(client.private_key_pem).encode()))

    def _write(self, name: str, *parts: trustme.Blob) -> str:
        file = self.folder / name
        file.write_bytes(b"".join(part.bytes() for part in parts))
        return str(file)


class SecureKafka(Kafka):
    """The bundled broker with two more listeners: SASL_SSL with passwords, and SSL with client certificates."""

    def __init__(self, root: Root, certificates: Certificates) -> None:
        super().__init__(root, port_reservations.reserve_free_port(), root.secrets())
        self.certificates = certificates
        self.sasl_port, self.tls_port = (port_reservations.reserve_free_port() for _ in range(2))

    def properties(self) -> dict[str, object]:
        given = super().properties()
        more = {"SASL_SSL": self.sasl_port, "SSL": self.tls_port}
        listeners = "".join(f",{name}://{HOST}:{port}" for name, port in more.items())
        server, login = self.certificates.server, "org.apache.kafka.common.security"
        return {
            **given,
            "listeners": f"{given['listeners']}{listeners}",
            "advertised.listeners": f"{given['advertised.listeners']}{listeners}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": _lines(*server.cert_chain_pems),
            "ssl.keystore.key": _pkcs8(server.private_key_pem),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": _lines(self.certificates.authority.cert_pem),
            "listener.name.ssl.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                f"{login}.plain.PlainLoginModule required user_{USER}={_quoted(PASSWORD)};"
            ),
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
        }

    def add_scram_user(self) -> None:
        """Give the user a password for both SCRAM mechanisms, as an operator does, over the plain listener."""
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            config = ["--alter", "--add-config", f"{mechanism}=[password={PASSWORD}]"]
            entity = ["--entity-type", "users", "--entity-name", USER]
            tool = java_command(KAFKA_TOOLS["configs"], "--bootstrap-server", self.url(), *config, *entity)
            done = subprocess.run(tool, capture_output=True, text=True, check=False, timeout=60, env=LOCALE)
            assert done.returncode == 0, done.stdout + done.stderr

    def bring_up(self, started: list[Any]) -> None:
        bring(self, started)
        self.add_scram_user()

    def sasl(self, mechanism: str = "SCRAM-SHA-512") -> dict[str, str]:
        """Settings of a client with a password."""
        return {
            "kafka": f"{HOST}:{self.sasl_port}",
            "kafka_security_protocol": "SASL_SSL",
            "kafka_ca_file": self.certificates.ca,
            "kafka_sasl_mechanism": mechanism,
            "kafka_username": USER,
            "kafka_password": PASSWORD,
        }

    def mutual_tls(self) -> dict[str, str]:
        """Settings of a client with a certificate."""
        return {
            "kafka": f"{HOST}:{self.tls_port}",
            "kafka_security_protocol": "SSL",
            "kafka_ca_file": self.certificates.ca,
            "kafka_certificate_file": self.certificates.certificate,
            "kafka_key_file": self.certificates.key,
        }


def _lines(*parts: trustme.Blob) -> str:
    return "".join(part.bytes().decode() for part in parts)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _pkcs8(key: trustme.Blob) -> str:
    """Return a private key in the form that Kafka reads."""
    loaded = serialization.load_pem_private_key(key.bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return loaded.private_bytes(*form).decode()
