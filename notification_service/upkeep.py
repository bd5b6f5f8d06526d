"""What every worker does beside its agents: forget how shoppers were reached when it is long ago, and what is over."""

import asyncio
from typing import Final

from notification_service.store import QUERIES, Link

TRIM_EVERY: Final = 600.0
TRIM_AT_ONCE: Final = 1000
"""Rows of one statement; as many statements follow as it takes."""


class Housekeeper:
    """Takes old rows away, some at a time. `contact_days`: how long a contact is kept."""

    def __init__(self, link: Link, contact_days: int) -> None:
        self.link = link
        self.contact_days = contact_days

    async def run(self) -> None:
        """Tidy every ten minutes; raises when the connection is lost."""
        while True:
            await self.tidy()
            await asyncio.sleep(TRIM_EVERY)

    async def tidy(self) -> int:
        """Take away what is old; how many rows that were."""
        taken = 0
        for name in ("trim_contacts", "trim_bought", "trim_carts"):
            while True:
                gone = (await (await self.link()).execute(QUERIES[name], {"days": self.contact_days})).rowcount
                taken += gone
                if gone < TRIM_AT_ONCE:
                    break
                await asyncio.sleep(0.1)  # let others have the disk
        return taken
