"""Limits by recipient: how many e-mails or SMS one address or number gets, and how many are sent in total.

A notice claims its place in Postgres before it is handed over, once for all its attempts. The claims of a channel are
made one at a time, whatever process makes them, so that no two of them take the last place.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final, Literal

from contracts.notifications import Channel
from notification_service.sender import Notice, RecipientLimitError, TotalLimitError
from notification_service.settings import Settings
from notification_service.store import QUERIES, Connect, SharedConnection

Refusal = Literal["recipient", "total"]


@dataclass(frozen=True, slots=True)
class RecipientLimits:
    """Maximum numbers of notices of one channel: for one recipient, and in total."""

    hour: int
    """For one recipient in an hour: notices of the shop itself."""
    day: int
    """For one recipient in a day: notices of the shop itself."""
    service_hour: int
    """For one recipient in an hour: notices that other services request."""
    service_day: int
    """For one recipient in a day: notices that other services request."""
    total_hour: int
    """For all recipients together in an hour; 0: no limit."""

    @classmethod
    def of(cls, settings: Settings, channel: Channel) -> "RecipientLimits":
        """Return the limits of `channel` in `settings`."""
        hour, day, total = {
            "email": (settings.email_limit_hour, settings.email_limit_day, settings.email_limit_total_hour),
            "sms": (settings.sms_limit_hour, settings.sms_limit_day, settings.sms_limit_total_hour),
        }[channel]
        return cls(hour, day, settings.service_limit_hour, settings.service_limit_day, total)

    def refusal(self, *, by_service: bool, hour: int, day: int, total: int) -> Refusal | None:
        """Return which limit forbids one more notice after these, or `None`."""
        most_hour, most_day = (self.service_hour, self.service_day) if by_service else (self.hour, self.day)
        if hour >= most_hour or day >= most_day:
            return "recipient"
        return "total" if self.total_hour and total >= self.total_hour else None


_IGNORED_IN_LOCAL_PARTS: Final = str.maketrans("", "", ".\"'")


def email_recipient(address: str) -> str:
    """Return the key under which the mails to a normalised address are counted.

    Most mail servers deliver `Ann.B+shop@…` and `annb@…` to one mailbox, so both have the same key. Elsewhere these are
    different mailboxes, which then share a limit.
    """
    local, _, domain = address.casefold().rpartition("@")
    base = local.partition("+")[0].translate(_IGNORED_IN_LOCAL_PARTS)
    return f"{base or local}@{domain}"


def sms_recipient(number: str) -> str:
    """Return the key under which the SMS to a number are counted: its digits without `+` or leading zeros."""
    return "".join(digit for digit in number if digit.isdigit()).lstrip("0")


class RecipientLimiter:
    """Claims of one channel, each made in a transaction on a connection of its own."""

    def __init__(self, connect: Connect, channel: Channel, limits: RecipientLimits) -> None:
        self.connection = SharedConnection(connect)
        self.channel = channel
        self.limits = limits
        self._lock = asyncio.Lock()

    async def claim(self, notice: Notice, recipient: str) -> None:
        """Claim the place of a notice for a recipient; a notice that has one keeps it.

        Raises `RecipientLimitError` if the recipient has had too many, and `TotalLimitError` if all have.
        """
        values = {
            "notice_id": notice.notice_id,
            "channel": self.channel,
            "recipient": hashlib.sha256(f"{self.channel} {recipient}".encode()).hexdigest(),
            "by_service": notice.by_service,
            "most": self.limits.total_hour,
        }
        async with self._lock:
            connection = await self.connection()
            try:
                async with connection.transaction():
                    await connection.execute(QUERIES["lock_claims"], values)
                    refusal = None
                    row = await (await connection.execute(QUERIES["count_claims"], values)).fetchone()
                    if row is not None and not row[0]:
                        _, hour, day, total = row
                        refusal = self.limits.refusal(by_service=notice.by_service, hour=hour, day=day, total=total)
                        if refusal is None:
                            await connection.execute(QUERIES["insert_claim"], values)
            except BaseException:
                await self.close()  # it is unknown whether it was committed; a repeat is always safe
                raise
        if refusal == "recipient":
            raise RecipientLimitError("recipient_limit")
        if refusal == "total":
            raise TotalLimitError(f"all recipients together have had {self.limits.total_hour} in an hour")

    async def close(self) -> None:
        """Close the connection; the next claim opens another."""
        await self.connection.close()
