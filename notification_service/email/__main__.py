"""The e-mail processor as a process: `python -m notification_service.email run`."""

import sys

from notification_service import email
from notification_service.email.mail import SmtpPort
from notification_service.processor import Parts, main
from notification_service.teller import MARGIN, Book


def port(parts: Parts) -> SmtpPort:
    """The mail server that the settings name."""
    settings = parts.settings
    seconds = settings.notice_seconds * MARGIN
    return SmtpPort(settings.smtp_url.get_secret_value(), settings.mail_from, Book(parts.link.rows), seconds=seconds)


if __name__ == "__main__":
    sys.exit(main("email", port, email.__doc__ or ""))
