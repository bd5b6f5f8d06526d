"""A simulated SMS provider: it sends nothing, and stores each SMS under a masked number.

A real provider would be another `NoticePort`, with the notice's id as its idempotency key.
"""

import logging
import re
from typing import Final

from notification_service.sender import ContactLookup, FetchRows, NoRecipientError, Notice

log = logging.getLogger(__name__)

VISIBLE_DIGITS: Final = 3


def mask_number(number: str) -> str:
    """Mask `+44 20 7946 0123` as `••••••••••123`: enough to distinguish two numbers, not enough to call one."""
    digits = re.sub(r"\D", "", number)
    return "•" * max(len(digits) - VISIBLE_DIGITS, VISIBLE_DIGITS) + digits[-VISIBLE_DIGITS:]


class SimulatedSmsPort:
    """Port that stores one SMS per notice, however often it is handed over. `fetch` runs a named query."""

    def __init__(self, contacts: ContactLookup, fetch: FetchRows) -> None:
        self.contacts = contacts
        self.fetch = fetch

    async def send(self, notice: Notice) -> None:
        """Store the SMS of a notice. Raises `NoRecipientError` if the user has no phone number."""
        phone = (await self.contacts(notice)).phone
        if not phone:
            raise NoRecipientError("no_phone")
        number = mask_number(phone)
        await self.fetch("take_sms", {"notice_id": notice.notice_id, "number": number, "text": notice.text.sms})
        log.info("an SMS to %s: %s", number, notice.text.title, extra={"notice": notice.notice_id})
