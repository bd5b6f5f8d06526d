"""The process of the SMS processor: `python -m notification_service.sms run`."""

import sys

from notification_service import sms
from notification_service.processor import PortContext, main
from notification_service.sender import ContactLookup
from notification_service.sms.simulated import SimulatedSmsPort


def build_port(context: PortContext) -> SimulatedSmsPort:
    """Build the port to the simulated provider, in the service's own schema."""
    fetch = context.connection.fetch
    return SimulatedSmsPort(ContactLookup(fetch), context.limiter("sms"), fetch)


if __name__ == "__main__":
    sys.exit(main("sms", build_port, sms.__doc__ or ""))
