"""The public language of accounts: events about users and about the end of their sessions.

No event carries an address, a name or a profile: topics are kept for long, and a person's data stays in one database.
"""

from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import Field

from contracts.envelope import Message, MessageRegistry
from contracts.inventory import Identifier
from contracts.topics import Topic

EVENTS: Final = Topic("accounts.events.v1", keyed_by="user", retention=timedelta(days=90))

Role = Literal["shopper", "support", "admin", "service"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
MAX_SESSIONS: Final = 50
"""Sessions that one account may have at a time; a further login ends the oldest one."""


class _OfAccount(Message):
    user_id: Identifier
    version: Annotated[int, Field(ge=1)]
    """Version of the account after the event; each change of an account raises it by one."""


class Registered(_OfAccount):
    """A new account."""

    TYPE: ClassVar[str] = "holdfast.accounts.registered"
    roles: tuple[Role, ...]


class Updated(_OfAccount):
    """The account's `fields` were changed; their values are read from the account service."""

    TYPE: ClassVar[str] = "holdfast.accounts.updated"
    fields: tuple[str, ...]


class RolesChanged(_OfAccount):
    """The account has these roles. Access tokens of a lower version are no longer valid."""

    TYPE: ClassVar[str] = "holdfast.accounts.roles-changed"
    roles: tuple[Role, ...]


class Disabled(_OfAccount):
    """The account was disabled. Access tokens of a lower version are no longer valid."""

    TYPE: ClassVar[str] = "holdfast.accounts.disabled"


class Enabled(_OfAccount):
    """A disabled account may log in again."""

    TYPE: ClassVar[str] = "holdfast.accounts.enabled"


class Deleted(_OfAccount):
    """The account was deleted. Its access tokens are no longer valid."""

    TYPE: ClassVar[str] = "holdfast.accounts.deleted"


EndReason = Literal["logged_out", "reused", "password_changed", "surplus", "disabled", "deleted"]


class SessionsEnded(Message):
    """Some sessions of an account were ended. Their access tokens are no longer valid."""

    TYPE: ClassVar[str] = "holdfast.accounts.sessions-ended"
    user_id: Identifier
    session_ids: Annotated[tuple[Identifier, ...], Field(min_length=1, max_length=MAX_SESSIONS + 1)]
    reason: EndReason


Event = Registered | Updated | RolesChanged | Disabled | Enabled | Deleted | SessionsEnded
EVENT_REGISTRY: Final[MessageRegistry[Event]] = MessageRegistry(get_args(Event), sources=("/accounts",))
