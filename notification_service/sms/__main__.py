"""The SMS processor as a process: `python -m notification_service.sms run`."""

import sys

from notification_service import sms
from notification_service.processor import Parts, main
from notification_service.sms.simulated import SimulatedPort
from notification_service.teller import Book


def port(parts: Parts) -> SimulatedPort:
    """The simulated provider, in the service's own schema."""
    return SimulatedPort(Book(parts.link.rows), parts.link.rows)


if __name__ == "__main__":
    sys.exit(main("sms", port, sms.__doc__ or ""))
