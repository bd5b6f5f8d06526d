"""The process of the SMS processor: `python -m notification_service.sms run`."""

import sys

from notification_service import sms
from notification_service.processor import Parts, main
from notification_service.sms.simulated import SimulatedPort
from notification_service.teller import Book


def port(context: Parts) -> SimulatedPort:
    """Build the port to the simulated provider, in the service's own schema."""
    return SimulatedPort(Book(context.link.rows), context.link.rows)


if __name__ == "__main__":
    sys.exit(main("sms", port, sms.__doc__ or ""))
