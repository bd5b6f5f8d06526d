"""The public language of notices: what shall be told to whom, and what became of it."""

from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import Field

from infrastructure.envelope import Message, Moment, Vocabulary
from infrastructure.topics import Topic
from inventory_service.messages import Printable

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
    "message",
]
"""What is said; `message` says its parameters `title` and `body`, for services that have something of their own."""

ParamName = Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
Param = Annotated[str, Field(max_length=4000)]
Cause = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[ -~]+$")]
"""What a notice is about: an event has one, so that it is told once however often it is heard of."""
Stood = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+/[0-9]+$")]
"""Where a request stood on its topic: `partition/offset`."""


class _OfUser(Message):
    user_id: Printable


# ---- requests -------------------------------------------------------------------------------------------------------


class Send(_OfUser):
    """Tell `user_id` something, once for each `cause` and channel; without a `channel`, on all that suit the template.

    It goes to the contact given with `order_id`, else to the last one that is known of this user. `until` is when it
    would come too late. `redrives` is for dead letters: it names the request whose notices failed for good, and has
    those tried again, once.
    """

    TYPE: ClassVar[str] = "holdfast.notifications.send"
    template: Template
    channel: Channel | None = None
    params: dict[ParamName, Param] = Field(default_factory=dict, max_length=32)
    cause: Cause
    order_id: Printable | None = None
    until: Moment | None = None
    redrives: Stood | None = None


class Prefer(_OfUser):
    """What this user wants to be told on; the last one accepted counts, whatever order they come in."""

    TYPE: ClassVar[str] = "holdfast.notifications.prefer"
    email: bool
    sms: bool
    push: bool


class Forget(_OfUser):
    """Erase how this user is reached, and what was told to them."""

    TYPE: ClassVar[str] = "holdfast.notifications.forget"


Request = Send | Prefer | Forget
REQUEST_VOCABULARY: Final[Vocabulary[Request]] = Vocabulary(
    get_args(Request), sources=("/edge", "/orders", "/notifications")
)

# ---- events ---------------------------------------------------------------------------------------------------------


class _OfNotice(_OfUser):
    notice_id: Printable
    template: Template
    channel: Channel
    cause: str
    title: str
    body: str
    accepted_at: Moment
    """When it came to be: the time of what it tells of."""


class Sent(_OfNotice):
    """It was handed over: to the mail server, to the SMS port, to the open sockets."""

    TYPE: ClassVar[str] = "holdfast.notifications.sent"


class Failed(_OfNotice):
    """It could not be handed over, for good; it lies in the dead letters."""

    TYPE: ClassVar[str] = "holdfast.notifications.failed"
    reason: str


class Preferred(_OfUser):
    """What counts from `since` on; the answer to `Prefer`, also to one that was overtaken by a later one."""

    TYPE: ClassVar[str] = "holdfast.notifications.preferred"
    email: bool
    sms: bool
    push: bool
    since: Moment


class Forgotten(_OfUser):
    """Nothing is known any more of what this user was told before `at`."""

    TYPE: ClassVar[str] = "holdfast.notifications.forgotten"
    at: Moment


Event = Sent | Failed | Preferred | Forgotten
EVENT_VOCABULARY: Final[Vocabulary[Event]] = Vocabulary(get_args(Event), sources=("/notifications",))
