"""The one table of requests in flight: sent to Kafka, or about to be, and not answered yet. No I/O and no clock.

Sockets and REST requests of a user share the table, because they share that user's limit and request ids. `now` is
always in seconds of one clock, the same for all calls.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from rest_api.security.admission import FORGET_SECONDS, Admission

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Iterator

    from contracts import cart
    from contracts.notifications import Preferred

STALE_SECONDS: Final = 900.0
"""After this long without an answer a request no longer counts as unanswered."""
MAX_AWAITED: Final = 256
"""Changes of one socket that still get a `pending` frame; the oldest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a REST request: the message, and the frame that a socket would get, or nothing."""

    message: cart.Response | Preferred
    frame: bytes = b""


class Registration(Enum):
    """The result of `InFlight.register`; only an accepted request may be sent."""

    ACCEPTED = auto()
    TOO_MANY = auto()
    """The user has as many unanswered requests as the limit allows."""
    OVERLOADED = auto()
    """The whole shop has more requests in flight than it can answer soon."""


Key = tuple[str | None, str]
"""The session whose read it is (`None` for a change or a REST request), and the request id."""


@dataclass(slots=True, eq=False)
class InFlightRequest:
    """One request in flight."""

    user_id: str
    key: Key
    accepted_at: float | None = None
    """Time of the last send; `None` while the request does not count as unanswered."""
    admitted_at: float | None = None
    """Time of the first send; `None` while the request takes no room in `Admission`."""
    acknowledged: dict[str, bool] = field(default_factory=dict)
    """The sessions that sent this change, each with True once it was sent `pending`."""
    deadline: float | None = None
    """Time at which a read is given up; `None` for every other request."""
    futures: list[Future[Reply]] = field(default_factory=list)
    """REST requests that wait for the answer."""

    @property
    def is_unused(self) -> bool:
        """True if the entry can be removed: no socket, REST request or limit depends on it."""
        return self.accepted_at is None and self.deadline is None and not self.acknowledged and not self.futures


@dataclass(slots=True)
class _Socket:
    """The requests of one open socket, oldest first."""

    changes: dict[str, InFlightRequest] = field(default_factory=dict)
    reads: dict[str, InFlightRequest] = field(default_factory=dict)


class InFlight:
    """Requests in flight, by user and request id.

    A change is identified by user and request id: the same id from two sockets, or sent twice, is one entry. A read
    belongs to one session, so two sockets may use the same id for their reads.

    Obligations of the callers:

    - Call `register` before a request is sent, and send the request only if the result is `ACCEPTED`. The session does
      it for frames, `idempotency.send_command` for REST requests.
    - Call `acknowledge` when Kafka has the request, and before an outcome is sent to a socket: True means that the
      socket is owed `pending` first.
    - Call `release` on every path on which a registered request was perhaps not sent: it stops counting, and its late
      outcome still reaches the sockets and futures.
    - Call `settle` once the answer is there. Only the connection manager does, after it sent the answer to the sockets.
      Reads are settled by `settle_read`.
    - Enter `wait` before the request is sent; on exit the future is removed, answered or not.
    - Call `close` when a socket is gone.
    """

    def __init__(self, admission: Admission | None = None) -> None:
        """`admission` limits the whole edge; without it every request is admitted."""
        self._admission = Admission(None) if admission is None else admission
        self._users: dict[str, dict[Key, InFlightRequest]] = {}
        self._admitted: dict[tuple[str, Key], InFlightRequest] = {}
        """Index of requests with an `admitted_at`, in the order of admission."""
        self._sockets: dict[str, _Socket] = {}
        """Index by session."""
        self._preparing = 0
        """Requests that take room and are not registered yet."""

    # ---- queries ----------------------------------------------------------------------------------------------------

    def unanswered(self, user_id: str) -> list[str]:
        """Return the ids of a user's requests that count towards the limit."""
        return [request.key[1] for request in self._requests(user_id) if request.accepted_at is not None]

    def accepted_at(self, user_id: str, request_id: str) -> float | None:
        """Return when a change or REST request was last sent; `None` if it is not unanswered."""
        request = self._users.get(user_id, {}).get((None, request_id))
        return request.accepted_at if request else None

    def is_awaited(self, user_id: str, request_id: str, session: str) -> bool:
        """Return True if this session sent the change and has no outcome yet."""
        request = self._users.get(user_id, {}).get((None, request_id))
        return request is not None and session in request.acknowledged

    def is_reading(self, session: str, request_id: str) -> bool:
        """Return True if this session waits for the answer to a read."""
        socket = self._sockets.get(session)
        return socket is not None and request_id in socket.reads

    def has_requests(self, user_id: str) -> bool:
        """Return True if anything of a user is in the table."""
        return user_id in self._users

    def next_deadline(self, session: str) -> float | None:
        """Return when the next read of a session is given up; `None` without reads."""
        socket = self._sockets.get(session)
        return min(_deadlines(socket).values()) if socket and socket.reads else None

    def overdue_reads(self, session: str, now: float) -> list[str]:
        """Return the ids of the session's reads whose deadline has passed."""
        socket = self._sockets.get(session)
        return [name for name, deadline in _deadlines(socket).items() if deadline <= now] if socket else []

    # ---- before the send --------------------------------------------------------------------------------------------

    def has_room(self, now: float) -> bool:
        """Return True if `Admission` has room for one more request."""
        while self._admitted and self._oldest_admission() < now - FORGET_SECONDS:
            self._unadmit(next(iter(self._admitted.values())))
        oldest = self._oldest_admission() if self._admitted else None
        return self._admission.has_room(len(self._admitted) + self._preparing, now, oldest)

    def observe_turn(self, seconds: float, now: float) -> None:
        """Take notice of a turn of the event loop; see `Admission.observe_turn`."""
        self._admission.observe_turn(seconds, now)

    def reserve(self, now: float) -> bool:
        """Take room in `Admission` for a request that will be registered later; False if there is none.

        Call `unreserve` right before it is registered, or when it will not be.
        """
        if not self.has_room(now):
            return False
        self._preparing += 1
        return True

    def unreserve(self) -> None:
        """Undo `reserve`."""
        self._preparing -= 1

    def register(  # noqa: PLR0913 - sender, request, time and two limits
        self,
        user_id: str,
        request_id: str,
        now: float,
        *,
        limit: int | None,
        session: str | None = None,
        read_until: float | None = None,
        is_guarded: bool = True,
    ) -> Registration:
        """Add a request, or renew one that is sent again, which always fits into `limit`.

        `session` is the socket that sends it, if one does; `read_until` marks a read of that session. Without
        `is_guarded` the load of the whole shop does not matter. A refused request does not count as unanswered.
        """
        key: Key = (None if read_until is None else session, request_id)
        requests = self._users.get(user_id, {})
        request = requests.get(key)
        counted = request is not None and request.accepted_at is not None
        if limit is not None and not counted and len(requests) >= limit and self._is_full(user_id, limit, now):
            return Registration.TOO_MANY
        if request is None:
            request = self._add(user_id, key)
        request.accepted_at = now
        if is_guarded and not self._admit(request, now):
            self._release(request)
            return Registration.OVERLOADED
        if session is not None and read_until is None:
            self._await(request, session)
        elif session is not None:
            self._set_deadline(request, session, read_until)
        return Registration.ACCEPTED

    def register_own_read(self, user_id: str, request_id: str, session: str, until: float) -> None:
        """Add a read that the session makes by itself, or move its deadline; such a read counts towards no limit."""
        self._set_deadline(self._add(user_id, (session, request_id)), session, until)

    @contextmanager
    def wait(self, user_id: str, request_id: str, future: Future[Reply]) -> Iterator[Future[Reply]]:
        """Give `future` the answer to a request, for as long as the context lasts."""
        request = self._add(user_id, (None, request_id))
        request.futures.append(future)
        try:
            yield future
        finally:
            if future in request.futures:
                request.futures.remove(future)
                self._discard_if_unused(request)

    # ---- after the send ---------------------------------------------------------------------------------------------

    def acknowledge(self, user_id: str, request_id: str, session: str) -> bool:
        """Record that a session is sent `pending`; False if it was before, or if it did not send the change."""
        request = self._users.get(user_id, {}).get((None, request_id))
        if request is None or request.acknowledged.get(session, True):
            return False
        request.acknowledged[session] = True
        return True

    def release(self, user_id: str, request_id: str) -> None:
        """Stop counting a change or REST request that may not have been sent; its outcome is still awaited."""
        request = self._users.get(user_id, {}).get((None, request_id))
        if request is not None:
            self._release(request)

    def detach(self, user_id: str, request_id: str, session: str) -> None:
        """Stop counting a change of which the session has learnt by `resume`; other sockets still await its outcome."""
        request = self._users.get(user_id, {}).get((None, request_id))
        if request is not None:
            self._forget_socket(request, session)
            self._release(request)

    def settle(self, user_id: str, request_id: str, answer: Reply) -> None:
        """Remove a change or REST request, and give its answer to the REST requests that wait for it."""
        key: Key = (None, request_id)
        requests = self._users.get(user_id, {})
        request = requests.pop(key, None)
        if request is None:
            return
        if not requests:
            del self._users[user_id]
        for session in request.acknowledged:
            if session in self._sockets:
                self._sockets[session].changes.pop(request_id, None)
        if request.admitted_at is not None:
            self._admission.count_answer()
            del self._admitted[user_id, key]
        for future in request.futures:
            if not future.done():
                future.set_result(answer)

    def settle_read(self, user_id: str, request_id: str, session: str) -> bool:
        """Remove a read; False if the session does not wait for it."""
        request = self._users.get(user_id, {}).get((session, request_id))
        if request is None:
            return False
        request.deadline = None
        self._sockets[session].reads.pop(request_id, None)
        self._release(request)
        return True

    def resolve(self, user_id: str, request_id: str, answer: Reply) -> None:
        """Give an answer to the REST requests that wait for it, and change nothing else."""
        request = self._users.get(user_id, {}).get((None, request_id))
        if request is None:
            return
        futures, request.futures = request.futures, []
        for future in futures:
            if not future.done():
                future.set_result(answer)
        self._discard_if_unused(request)

    def close(self, user_id: str, session: str) -> None:
        """Remove the reads of a socket that is gone. Its changes still count until they are answered or stale."""
        socket = self._sockets.get(session)
        if socket is None:
            return
        for request_id in list(socket.reads):
            self.settle_read(user_id, request_id, session)
        del self._sockets[session]
        for request in socket.changes.values():
            if request.accepted_at is None:
                request.acknowledged.pop(session, None)
                self._discard_if_unused(request)

    def forget_stale(self, user_id: str, now: float) -> None:
        """Stop counting the requests of a user that have had no answer for `STALE_SECONDS`."""
        for request in self._requests(user_id):
            if request.accepted_at is not None and now - request.accepted_at >= STALE_SECONDS:
                self._uncount(request)

    # ---- the entries ------------------------------------------------------------------------------------------------

    def _requests(self, user_id: str) -> list[InFlightRequest]:
        return list(self._users.get(user_id, {}).values())

    def _add(self, user_id: str, key: Key) -> InFlightRequest:
        requests = self._users.setdefault(user_id, {})
        request = requests.get(key)
        if request is None:
            request = requests[key] = InFlightRequest(user_id, key)
        return request

    def _is_full(self, user_id: str, limit: int, now: float) -> bool:
        """Return True if a user has `limit` unanswered requests even without the stale ones."""
        if len(self.unanswered(user_id)) < limit:
            return False
        self.forget_stale(user_id, now)
        return len(self.unanswered(user_id)) >= limit

    def _admit(self, request: InFlightRequest, now: float) -> bool:
        if request.admitted_at is not None or not self._admission.is_limited:
            return True
        if not self.has_room(now):
            return False
        request.admitted_at = now
        self._admitted[request.user_id, request.key] = request
        return True

    def _oldest_admission(self) -> float:
        return next(iter(self._admitted.values())).admitted_at or 0.0

    def _unadmit(self, request: InFlightRequest) -> None:
        request.admitted_at = None
        del self._admitted[request.user_id, request.key]

    def _await(self, request: InFlightRequest, session: str) -> None:
        changes = self._sockets.setdefault(session, _Socket()).changes
        request.acknowledged[session] = False
        changes[request.key[1]] = request
        if len(changes) > MAX_AWAITED:  # needs many sends that were answered `unavailable`, or no limits
            oldest = next(iter(changes.values()))
            self._forget_socket(oldest, session)
            self._discard_if_unused(oldest)

    def _set_deadline(self, request: InFlightRequest, session: str, until: float | None) -> None:
        request.deadline = until
        self._sockets.setdefault(session, _Socket()).reads[request.key[1]] = request

    def _forget_socket(self, request: InFlightRequest, session: str) -> None:
        request.acknowledged.pop(session, None)
        socket = self._sockets.get(session)
        if socket is not None:
            socket.changes.pop(request.key[1], None)

    def _release(self, request: InFlightRequest) -> None:
        if request.admitted_at is not None:
            self._admission.count_answer()
        self._uncount(request)

    def _uncount(self, request: InFlightRequest) -> None:
        request.accepted_at = None
        if request.admitted_at is not None:
            self._unadmit(request)
        for session in [name for name in request.acknowledged if name not in self._sockets]:
            del request.acknowledged[session]  # closed, and it was kept only for the acknowledgement
        self._discard_if_unused(request)

    def _discard_if_unused(self, request: InFlightRequest) -> None:
        requests = self._users.get(request.user_id)
        if requests is not None and request.is_unused and requests.get(request.key) is request:
            del requests[request.key]
            if not requests:
                del self._users[request.user_id]


def _deadlines(socket: _Socket) -> dict[str, float]:
    return {name: read.deadline for name, read in socket.reads.items() if read.deadline is not None}
