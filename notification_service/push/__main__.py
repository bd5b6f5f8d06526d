"""The process of the push processor: `python -m notification_service.push run`."""

import sys

from notification_service import push
from notification_service.processor import PortContext, main
from notification_service.push.frames import PushPort


def build_port(context: PortContext) -> PushPort:
    """Build the port to the open sockets, through their topic."""
    frames = PushPort(context.settings)
    context.daemon.add_closer(frames.close)
    return frames


if __name__ == "__main__":
    sys.exit(main("push", build_port, push.__doc__ or ""))
