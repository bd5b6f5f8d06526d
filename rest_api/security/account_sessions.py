"""The sessions and accounts whose access tokens have ended before their time. Pure.

A token is verified without a lookup, so what has ended is kept here, from the events of accounts, for as long as a
token can live. Tokens that have ended are refused on every route, and close their sockets.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from contracts.accounts import Deleted, Disabled, Event, RolesChanged, SessionsEnded
from infrastructure.security.tokens import Identity

TOKEN_SECONDS: Final = 3600.0 + 120.0
"""Longest life of an access token, with the difference of clocks."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason for which a token has ended: a problem for requests, and a close code for sockets."""

    slug: str
    detail: str
    close_code: int


_SESSION_ENDED: Final = Refusal("token-expired", "the session has ended; log in again", 4401)
_DELETED: Final = Refusal("token-expired", "the account was deleted", 4401)
_ROLES: Final = Refusal("token-expired", "the roles of the account have changed; refresh the token", 4403)
_DISABLED: Final = Refusal("account-disabled", "the account is disabled; ask the shop's support", 4403)


class AccountSessions:
    """The sessions and accounts that have ended lately. `now` is in seconds of the Unix clock."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, float] = OrderedDict()
        """When each ended session was reported."""
        self._accounts: OrderedDict[str, tuple[int, Refusal, float]] = OrderedDict()
        """The version from which on the tokens of an account are valid, why, and when that was reported."""

    def apply(self, event: Event, now: float) -> bool:
        """Learn from an event; return whether tokens may have ended by it. Repeats change nothing."""
        self._forget(now)
        match event:
            case SessionsEnded():
                for session_id in event.session_ids:
                    self._sessions[session_id] = now
                    self._sessions.move_to_end(session_id)
            case RolesChanged():
                self._end(event.user_id, event.version, _ROLES, now)
            case Disabled():
                self._end(event.user_id, event.version, _DISABLED, now)
            case Deleted():
                self._end(event.user_id, event.version, _DELETED, now)
            case _:
                return False
        return True

    def refusal(self, identity: Identity) -> Refusal | None:
        """Return why the token of `identity` is not valid any more; `None` if it is, and for all tokens of guests."""
        if identity.session_id is None:
            return None
        ended = self._accounts.get(identity.user_id)
        if ended is not None and identity.account_version < ended[0]:
            return ended[1]
        return _SESSION_ENDED if identity.session_id in self._sessions else None

    def _end(self, user_id: str, version: int, refusal: Refusal, now: float) -> None:
        known = self._accounts.get(user_id)
        if known is None or known[0] < version:
            self._accounts[user_id] = version, refusal, now
            self._accounts.move_to_end(user_id)

    def _forget(self, now: float) -> None:
        """Forget what no valid token can belong to any more."""
        while self._sessions and next(iter(self._sessions.values())) < now - TOKEN_SECONDS:
            self._sessions.popitem(last=False)
        while self._accounts and next(iter(self._accounts.values()))[2] < now - TOKEN_SECONDS:
            self._accounts.popitem(last=False)
