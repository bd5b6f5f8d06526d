"""The mails of accounts, as requests to the notification service. Pure.

The token of a mail is a parameter of its text, so it is on the topic of the requests and in the row of the mail until
the mail is sent. It is valid for a short time and once.
"""

from datetime import datetime

from account_service.model import LIFETIMES, Account, Purpose
from contracts.notifications import Send, Template

_TEMPLATES: dict[Purpose, Template] = {"confirm": "account_confirm", "reset": "password_reset"}


def token_mail(account: Account, purpose: Purpose, token: str, *, cause: str, now: datetime, link_url: str) -> Send:
    """Return the mail with a one-time token. `link_url` is the page that takes tokens, or empty."""
    params = {"token": token}
    if link_url:
        params["link"] = f"{link_url}#{purpose}={token}"
    return _send(account, _TEMPLATES[purpose], cause, params, until=now + LIFETIMES[purpose])


def address_taken_mail(account: Account, *, cause: str) -> Send:
    """Return the mail to the owner of an address that somebody tried to register again."""
    return _send(account, "account_exists", cause, {})


def password_changed_mail(account: Account) -> Send:
    """Return the mail that says that the password was changed, for an owner who has not done it."""
    return _send(account, "password_changed", f"account/{account.user_id}/{account.version}/password", {})


def _send(
    account: Account, template: Template, cause: str, params: dict[str, str], until: datetime | None = None
) -> Send:
    return Send(
        user_id=account.user_id,
        template=template,
        channel="email",
        recipient=account.email,
        params=params,
        cause=cause,
        until=until,
    )
