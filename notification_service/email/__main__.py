"""The process of the e-mail processor: `python -m notification_service.email run`."""

import sys

from notification_service import email
from notification_service.email.mail import SmtpPort
from notification_service.processor import Parts, main
from notification_service.teller import MARGIN, Book


def port(context: Parts) -> SmtpPort:
    """Build the port to the configured mail server."""
    settings = context.settings
    seconds = settings.notice_seconds * MARGIN
    return SmtpPort(settings.smtp_url.get_secret_value(), settings.mail_from, Book(context.link.rows), seconds=seconds)


if __name__ == "__main__":
    sys.exit(main("email", port, email.__doc__ or ""))
