"""The process of the e-mail processor: `python -m notification_service.email run`."""

import sys
from urllib.parse import urlsplit

from notification_service import email
from notification_service.email.mail import SmtpPort
from notification_service.processor import PortContext, main
from notification_service.sender import SEND_DEADLINE_SHARE, ContactLookup


def build_port(context: PortContext) -> SmtpPort:
    """Build the port to the configured mail server."""
    settings = context.settings
    seconds = settings.notice_seconds * SEND_DEADLINE_SHARE
    url = settings.smtp_url.get_secret_value()
    return SmtpPort(
        url,
        settings.mail_sender,
        ContactLookup(context.connection.fetch),
        context.limiter("email"),
        seconds=seconds,
        require_tls=settings.requires_tls("smtp", urlsplit(url).hostname or ""),
        ca_file=settings.smtp_ca_file,
    )


if __name__ == "__main__":
    sys.exit(main("email", build_port, email.__doc__ or ""))
