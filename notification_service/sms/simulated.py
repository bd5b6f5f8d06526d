"""A simulated SMS provider: it sends nothing, and stores each SMS under a masked number.

A real provider would be another `Port`, with the notice's id as its idempotency key.
"""

import logging
import re
from typing import Final

from notification_service.teller import Book, Notice, NotWanted, Rows

log = logging.getLogger(__name__)

TOLD_DIGITS: Final = 3


def masked(number: str) -> str:
    """Mask `+44 20 7946 0123` as `••••••••••123`: enough to distinguish two numbers, not enough to call one."""
    digits = re.sub(r"\D", "", number)
    return "•" * max(len(digits) - TOLD_DIGITS, TOLD_DIGITS) + digits[-TOLD_DIGITS:]


class SimulatedPort:
    """Port that stores one SMS per notice, however often it is handed over. `rows` runs a named query."""

    def __init__(self, contacts: Book, rows: Rows) -> None:
        self.contacts = contacts
        self.rows = rows

    async def hand_over(self, notice: Notice) -> None:
        """Store the SMS of a notice. Raises `NotWanted` if the user has no phone number."""
        phone = (await self.contacts(notice)).phone
        if not phone:
            raise NotWanted("no_phone")
        number = masked(phone)
        await self.rows("take_sms", {"notice_id": notice.notice_id, "number": number, "text": notice.words.sms})
        log.info("an SMS to %s: %s", number, notice.words.title, extra={"notice": notice.notice_id})
