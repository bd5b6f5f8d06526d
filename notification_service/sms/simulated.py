"""A simulated SMS provider: it sends nothing, and stores each SMS under a masked number.

A real provider would be another `NoticePort`, with the notice's id as its idempotency key.
"""

import logging
import re
from typing import Final

from notification_service.recipients import RecipientLimiter, sms_recipient
from notification_service.sender import ContactLookup, FetchRows, NoRecipientError, Notice

log = logging.getLogger(__name__)

VISIBLE_DIGITS: Final = 3


def mask_number(number: str) -> str:
    """Mask `+44 20 7946 0123` as `••••••••••123`: enough to distinguish two numbers, not enough to call one."""
    digits = re.sub(r"\D", "", number)
    return "•" * max(len(digits) - VISIBLE_DIGITS, VISIBLE_DIGITS) + digits[-VISIBLE_DIGITS:]


class SimulatedSmsPort:
    """Port that stores one SMS per notice, however often it is handed over. `fetch` runs a named query."""

    def __init__(self, contacts: ContactLookup, limiter: RecipientLimiter, fetch: FetchRows) -> None:
        self.contacts = contacts
        self.limiter = limiter
        self.fetch = fetch

    async def send(self, notice: Notice) -> None:
        """Store the SMS of a notice. Raises `NoRecipientError` if the user has no phone number."""
        contact = await self.contacts(notice)
        if not contact.phone:
            raise NoRecipientError("no_phone")
        if notice.proven_only and not contact.phone_proven:
            raise NoRecipientError("unproven_contact")
        await self.limiter.claim(notice, sms_recipient(contact.phone))
        number = mask_number(contact.phone)
        await self.fetch("take_sms", {"notice_id": notice.notice_id, "number": number, "text": notice.text.sms})
        log.info("an SMS to %s: %s", number, notice.template, extra={"notice": notice.notice_id})
