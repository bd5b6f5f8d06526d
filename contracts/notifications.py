"""The public language of notifications: requests for notices, and events about their outcomes."""

from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import Field

from contracts.envelope import Envelope, Message, MessageRegistry, Timestamp
from contracts.inventory import Identifier
from contracts.topics import Topic

REQUESTS: Final = Topic("notifications.requests.v1", keyed_by="user", retention=timedelta(days=7))
EVENTS: Final = Topic("notifications.events.v1", keyed_by="user", retention=timedelta(days=90))

Channel = Literal["email", "sms", "push"]
CHANNELS: Final[tuple[Channel, ...]] = get_args(Channel)
Template = Literal[
    "order_confirmed",
    "order_cancelled",
    "payment_failed",
    "order_refunded",
    "order_shipped",
    "order_delivered",
    "cart_expiring",
    "cart_changed",
    "account_confirm",
    "account_exists",
    "password_reset",
    "password_changed",
    "message",
]
"""Name of a text. `message` takes `title` and `body` as parameters, for services with texts of their own."""

ParamName = Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
Param = Annotated[str, Field(max_length=4000, pattern=r"^[^\x00]*$")]
"""A parameter of a text. Postgres cannot store NUL."""
Cause = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[ -~]+$")]
"""Reason for a notice. Each event has one, so that repeats of the event lead to one notice."""
RequestPosition = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+/[0-9]+$")]
"""Position of a request on its topic: `partition/offset`."""


ACCOUNT_TEMPLATES: Final[frozenset[Template]] = frozenset(
    {"account_confirm", "account_exists", "password_reset", "password_changed"}
)
"""Texts about a user's own account, which only the account service may send, and which nobody can mute."""
SECRET_PARAMS: Final = frozenset({"token", "link"})
"""Parameters of the texts of accounts with which an account can be opened. No event contains them."""


class _OfUser(Message):
    user_id: Identifier


# ---- requests -------------------------------------------------------------------------------------------------------


class Send(_OfUser):
    """A request to notify `user_id`, once per `cause` and channel.

    Without `channel`, the notice goes to all channels that suit the template. It goes to the contact of `order_id`, or
    without one to the user's latest contact. `until` is the time after which the notice is not sent. `redrives` is for
    dead letters: it names the request whose notices failed permanently, and those are tried again, once.

    `recipient` is the address of the user's account: the mail goes to it, whatever channels the user prefers. Only the
    account service knows it.

    With `proven_only`, e-mail and SMS go only to an address or number to which this user has paid an order before.
    """

    TYPE: ClassVar[str] = "holdfast.notifications.send"
    template: Template
    channel: Channel | None = None
    params: dict[ParamName, Param] = Field(default_factory=dict, max_length=32)
    cause: Cause
    order_id: Identifier | None = None
    until: Timestamp | None = None
    redrives: RequestPosition | None = None
    proven_only: bool = False
    recipient: Annotated[str, Field(max_length=254, pattern=r"^[^\x00]*$")] | None = None

    def contradiction(self, event: Envelope) -> str | None:
        """Return why the request cannot be: only the account service sends texts of accounts, with their recipient."""
        if self.recipient is None and self.template not in ACCOUNT_TEMPLATES:
            return None
        if event.source != "/accounts":
            return f"only /accounts may name a recipient or send {self.template!r}, not {event.source!r}"
        return None if self.recipient and self.channel == "email" else "a text of an account is a mail to a recipient"


class Prefer(_OfUser):
    """A user's choice of channels. The one accepted last counts, in whatever order they arrive."""

    TYPE: ClassVar[str] = "holdfast.notifications.prefer"
    email: bool
    sms: bool
    push: bool


class Forget(_OfUser):
    """A request to erase a user's contacts and the content of their notices."""

    TYPE: ClassVar[str] = "holdfast.notifications.forget"


Request = Send | Prefer | Forget
REQUEST_REGISTRY: Final[MessageRegistry[Request]] = MessageRegistry(
    get_args(Request), sources=("/accounts", "/edge", "/orders", "/notifications")
)

# ---- events ---------------------------------------------------------------------------------------------------------


class _OfNotice(_OfUser):
    notice_id: Identifier
    template: Template
    channel: Channel
    cause: str
    title: str
    body: str
    accepted_at: Timestamp
    """Time of the event that the notice is about."""


class Sent(_OfNotice):
    """The notice was handed over to the mail server, the SMS provider or the open sockets."""

    TYPE: ClassVar[str] = "holdfast.notifications.sent"


class Failed(_OfNotice):
    """The notice failed permanently; its request is a dead letter."""

    TYPE: ClassVar[str] = "holdfast.notifications.failed"
    reason: str


class Skipped(_OfNotice):
    """The notice was not sent and will not be: its recipient has had too many. Its request is not dead-lettered."""

    TYPE: ClassVar[str] = "holdfast.notifications.skipped"
    reason: str


class Preferred(_OfUser):
    """The preferences from `since` on: the answer to `Prefer`, also to one that a later one has superseded."""

    TYPE: ClassVar[str] = "holdfast.notifications.preferred"
    email: bool
    sms: bool
    push: bool
    since: Timestamp


class Forgotten(_OfUser):
    """The contacts and notices of this user from before `at` are erased."""

    TYPE: ClassVar[str] = "holdfast.notifications.forgotten"
    at: Timestamp


Event = Sent | Failed | Skipped | Preferred | Forgotten
EVENT_REGISTRY: Final[MessageRegistry[Event]] = MessageRegistry(get_args(Event), sources=("/notifications",))
