"""The push processor as a process: `python -m notification_service.push run`."""

import sys

from notification_service import push
from notification_service.processor import Parts, main
from notification_service.push.frames import PushPort


def port(parts: Parts) -> PushPort:
    """The sockets, by way of their topic."""
    frames = PushPort(parts.settings)
    parts.daemon.closing(frames.close)
    return frames


if __name__ == "__main__":
    sys.exit(main("push", port, push.__doc__ or ""))
