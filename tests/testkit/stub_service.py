"""A service with nothing inside, for tests of the local stack: it keeps the supervisor's side of the bargain.

`python -m rest_api run` serves `/livez`, `/readyz` and `/metrics`, is ready when Kafka takes connections, and
ends with status 0 on SIGTERM; `seed` notes that it was called. A test makes it misbehave with a file in its
state directory: `crash` ends it at start.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STATE = Path(os.environ["HOLDFAST_STATE_DIR"])


class Health(BaseHTTPRequestHandler):
    """The three pages every service has."""

    def do_GET(self) -> None:
        """Answer one of them."""
        status = 200 if self.path != "/readyz" or _kafka_answers() else 503
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"stub_up 1\n" if self.path == "/metrics" else b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the parent's
        """Quiet."""


def _kafka_answers() -> bool:
    host, port = os.environ["HOLDFAST_KAFKA"].rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 0.5).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Run or seed."""
    if sys.argv[1] == "seed":
        with (STATE / "seeds").open("a") as calls:
            calls.write("seed\n")
        return
    if (STATE / "crash").exists():
        print("stub: told to crash", flush=True)
        raise SystemExit(7)
    port = int(os.environ["HOLDFAST_HTTP_PORT" if os.environ["HOLDFAST_REPLICA"] == "edge" else "HOLDFAST_HEALTH_PORT"])
    server = ThreadingHTTPServer(("127.0.0.1", port), Health)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("stub: serving", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
