"""The retention job: deletes notices, contacts and whatever else is no longer needed."""

import asyncio
from typing import Final

from notification_service.store import QUERIES, SharedConnection

RUN_SECONDS: Final = 600.0
DELETE_LIMIT: Final = 1000
"""Rows deleted by one statement. Statements are repeated until fewer are left."""

DELETIONS: Final = (
    "delete_old_notices",
    "delete_old_sms",
    "delete_old_claims",
    "delete_old_contacts",
    "delete_old_paid_orders",
    "delete_old_order_summaries",
    "delete_old_carts",
)


class RetentionJob:
    """Background job that deletes old rows in small batches.

    Contacts are kept for `contact_days` days, notices and their texts for `notice_days`.
    """

    def __init__(self, connection: SharedConnection, *, contact_days: int, notice_days: int) -> None:
        self.connection = connection
        self.days = {"contact_days": contact_days, "notice_days": notice_days}

    async def run(self) -> None:
        """Run every ten minutes until cancelled; raises when the connection is lost."""
        while True:
            await self.delete_old_rows()
            await asyncio.sleep(RUN_SECONDS)

    async def delete_old_rows(self) -> int:
        """Delete old rows, and return their number."""
        total = 0
        for name in DELETIONS:
            while True:
                deleted = (await (await self.connection()).execute(QUERIES[name], self.days)).rowcount
                total += deleted
                if deleted < DELETE_LIMIT:
                    break
                await asyncio.sleep(0.1)  # leave disk time for others
        return total
