"""The process of the push processor: `python -m notification_service.push run`."""

import sys

from notification_service import push
from notification_service.processor import Parts, main
from notification_service.push.frames import PushPort


def port(context: Parts) -> PushPort:
    """Build the port to the open sockets, through their topic."""
    frames = PushPort(context.settings)
    context.daemon.closing(frames.close)
    return frames


if __name__ == "__main__":
    sys.exit(main("push", port, push.__doc__ or ""))
