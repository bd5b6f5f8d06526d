"""The table of requests in flight: each rule by itself, and random sequences against a model of separate sets."""

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rest_api.security.admission import FORGET_SECONDS, Admission
from rest_api.websocket.in_flight import MAX_AWAITED, STALE_SECONDS, InFlight, Registration, Reply

NOW = 1_795_000_000.0
ANSWER: Reply = Reply(None)  # type: ignore[arg-type]  # the table looks at no message


class Future:
    """A future without an event loop."""

    def __init__(self) -> None:
        self.answers: list[Reply] = []

    def done(self) -> bool:
        return bool(self.answers)

    def set_result(self, answer: Reply) -> None:
        self.answers.append(answer)


def send(table: InFlight, request_id: str = "a", session: str | None = "s1", *, at: float = NOW) -> Registration:
    return table.register("u", request_id, at, limit=2, session=session)


def read(table: InFlight, request_id: str = "a", session: str = "s1", *, until: float = NOW + 10) -> Registration:
    return table.register("u", request_id, NOW, limit=2, session=session, read_until=until)


# ---- the limit of a user --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "then", "expected"),
    [
        ((), "a", Registration.ACCEPTED),
        (("a",), "b", Registration.ACCEPTED),
        (("a", "b"), "c", Registration.TOO_MANY),
        (("a", "b"), "b", Registration.ACCEPTED),
        (("a", "a", "a"), "b", Registration.ACCEPTED),
    ],
)
def test_the_limit_counts_each_request_once(sent: tuple[str, ...], then: str, expected: Registration) -> None:
    table = InFlight()
    for request_id in sent:
        send(table, request_id)
    assert send(table, then) is expected
    assert table.unanswered("u") == list(dict.fromkeys((*sent, then)))[:2]


@pytest.mark.parametrize("end", ["release", "detach", "settle", "stale"])
def test_a_request_that_no_longer_counts_makes_room(end: str) -> None:
    table, at = InFlight(), NOW
    send(table, "a")
    send(table, "b")
    if end == "release":
        table.release("u", "a")
    elif end == "detach":
        table.detach("u", "a", "s1")
    elif end == "settle":
        table.settle("u", "a", ANSWER)
    else:
        at = NOW + STALE_SECONDS
    assert send(table, "c", at=at) is Registration.ACCEPTED


def test_users_have_limits_of_their_own() -> None:
    table = InFlight()
    send(table, "a")
    send(table, "b")
    assert table.register("v", "a", NOW, limit=1) is Registration.ACCEPTED
    assert (table.unanswered("u"), table.unanswered("v")) == (["a", "b"], ["a"])


def test_reads_count_for_their_session_and_changes_for_their_user() -> None:
    table = InFlight()
    read(table, "a", "s1")
    read(table, "a", "s2")
    assert table.unanswered("u") == ["a", "a"]
    assert send(table, "a") is Registration.TOO_MANY
    table.register_own_read("u", "s1/cart", "s1", NOW)
    assert len(table.unanswered("u")) == 2, "what a session reads by itself counts towards no limit"


# ---- pending and outcome --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "owed"),
    [
        ((), True),
        (("acknowledge",), False),
        (("release",), True),
        (("detach",), False),
        (("settle",), False),
        (("acknowledge", "send"), True),
    ],
)
def test_pending_is_sent_once_to_the_session_of_the_change(before: tuple[str, ...], *, owed: bool) -> None:
    table = InFlight()
    send(table)
    for step in before:
        match step:
            case "acknowledge":
                assert table.acknowledge("u", "a", "s1")
            case "release":
                table.release("u", "a")
            case "detach":
                table.detach("u", "a", "s1")
            case "settle":
                table.settle("u", "a", ANSWER)
            case "send":
                send(table)
    assert table.acknowledge("u", "a", "s2") is False
    assert table.acknowledge("u", "a", "s1") is owed


def test_the_same_change_from_two_sockets_is_one_request_with_two_pendings() -> None:
    table = InFlight()
    send(table, session="s1")
    send(table, session="s2")
    assert table.unanswered("u") == ["a"]
    assert table.acknowledge("u", "a", "s1")
    assert table.acknowledge("u", "a", "s2")
    table.detach("u", "a", "s1")
    assert not table.is_awaited("u", "a", "s1")
    assert table.is_awaited("u", "a", "s2"), "the other socket has not resumed"


def test_a_refused_request_does_not_count_and_gets_no_pending() -> None:
    table = InFlight(Admission(0))
    assert send(table) is Registration.OVERLOADED
    assert table.unanswered("u") == []
    assert not table.acknowledge("u", "a", "s1")
    assert not table.has_requests("u")
    assert table.register("u", "a", NOW, limit=2, is_guarded=False) is Registration.ACCEPTED


def test_a_closed_socket_stays_until_its_change_is_released() -> None:
    table = InFlight()
    send(table)
    table.close("u", "s1")
    assert table.unanswered("u") == ["a"]
    assert table.is_awaited("u", "a", "s1"), "its acknowledgement may still come"
    table.release("u", "a")
    assert not table.has_requests("u")


def test_a_session_awaits_a_bounded_number_of_changes() -> None:
    table = InFlight()
    for number in range(MAX_AWAITED + 1):
        table.register("u", f"a{number}", NOW, limit=None, session="s1")
    assert not table.acknowledge("u", "a0", "s1")
    assert table.acknowledge("u", "a1", "s1")
    assert len(table.unanswered("u")) == MAX_AWAITED + 1


# ---- reads ----------------------------------------------------------------------------------------------------------


def test_a_read_is_settled_once_and_only_for_its_session() -> None:
    table = InFlight()
    read(table)
    assert not table.settle_read("u", "a", "s2")
    assert table.settle_read("u", "a", "s1")
    assert not table.settle_read("u", "a", "s1")
    assert not table.has_requests("u")


def test_the_next_deadline_is_the_earliest() -> None:
    table = InFlight()
    assert table.next_deadline("s1") is None
    read(table, "a", until=NOW + 10)
    table.register_own_read("u", "s1/cart", "s1", NOW + 5)
    assert table.next_deadline("s1") == NOW + 5
    assert table.overdue_reads("s1", NOW + 4) == []
    assert table.overdue_reads("s1", NOW + 10) == ["a", "s1/cart"]
    table.close("u", "s1")
    assert table.next_deadline("s1") is None
    assert not table.has_requests("u")


# ---- REST requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["resolve", "settle"])
def test_every_future_gets_the_answer_once(way: str) -> None:
    table, futures = InFlight(), [Future(), Future()]
    first, second = futures
    send(table, session=None)
    with table.wait("u", "a", first), table.wait("u", "a", second):  # type: ignore[arg-type]
        for _ in range(2):
            getattr(table, way)("u", "a", ANSWER)
    assert [future.answers for future in futures] == [[ANSWER], [ANSWER]]
    assert table.unanswered("u") == (["a"] if way == "resolve" else [])


def test_an_abandoned_future_leaves_no_entry() -> None:
    table, future = InFlight(), Future()
    with table.wait("u", "a", future):  # type: ignore[arg-type]
        assert table.has_requests("u")
    table.resolve("u", "a", ANSWER)
    assert not future.done()
    assert not table.has_requests("u")


def test_a_release_leaves_the_future_waiting() -> None:
    table, future = InFlight(), Future()
    send(table, session=None)
    with table.wait("u", "a", future):  # type: ignore[arg-type]
        table.release("u", "a")
        table.settle("u", "a", ANSWER)
    assert future.done()


# ---- all rules together ---------------------------------------------------------------------------------------------

USERS = st.sampled_from(["u", "v"])
IDS = st.sampled_from(["a", "b", "c", "d"])
SOCKETS = st.integers(1, 2)
LIMIT = 3
ROOM = 5


class FixedCapacity(Admission):
    """Admits `MIN_FREE_BYTES` requests, however many were answered lately."""

    def has_room(self, in_flight: int, _: float, _oldest: float | None = None) -> bool:
        return in_flight < ROOM


class Tables(RuleBasedStateMachine):
    """The table against a model of five sets: counted, admitted, awaited, read, and waited for."""

    @initialize()
    def begin(self) -> None:
        self.now = NOW
        self.table = InFlight(FixedCapacity(ROOM))
        self.counted: dict[tuple[str, str], float] = {}
        self.admitted: dict[tuple[str, str], float] = {}
        self.awaited: defaultdict[str, dict[str, bool]] = defaultdict(dict)
        self.reads: defaultdict[str, dict[str, float]] = defaultdict(dict)
        self.open: set[str] = set()
        self.closed = 0
        self.futures: list[tuple[str, str, Any, Future]] = []

    def uncount(self, user: str, key: str) -> None:
        self.counted.pop((user, key), None)
        self.admitted.pop((user, key), None)

    def session(self, user: str, number: int) -> str:
        """Return the open session with that number; every session has a unique id, as sockets have."""
        for session in self.open:
            if session.startswith(f"{user}{number}."):
                return session
        self.open.add(f"{user}{number}.{self.closed}")
        return self.session(user, number)

    def expected(self, user: str, key: str, *, guarded: bool = True) -> Registration:
        mine = [name for name in self.counted if name[0] == user]
        if (user, key) not in self.counted and len(mine) >= LIMIT:
            self.counted = {k: at for k, at in self.counted.items() if k[0] != user or self.now - at < STALE_SECONDS}
            self.admitted = {k: at for k, at in self.admitted.items() if k[0] != user or k in self.counted}
            if len([name for name in self.counted if name[0] == user]) >= LIMIT:
                return Registration.TOO_MANY
        self.counted[user, key] = self.now
        if guarded and (user, key) not in self.admitted:
            self.admitted = {k: at for k, at in self.admitted.items() if at >= self.now - FORGET_SECONDS}
            if len(self.admitted) >= ROOM:
                self.uncount(user, key)
                return Registration.OVERLOADED
            self.admitted[user, key] = self.now
        return Registration.ACCEPTED

    @rule(user=USERS, number=SOCKETS, name=IDS)
    def change(self, user: str, number: int, name: str) -> None:
        session = self.session(user, number)
        expected = self.expected(user, name)
        assert self.table.register(user, name, self.now, limit=LIMIT, session=session) is expected
        if expected is Registration.ACCEPTED:
            self.awaited[session][name] = False

    @rule(user=USERS, name=IDS)
    def rest(self, user: str, name: str) -> None:
        expected = self.expected(user, name)
        assert self.table.register(user, name, self.now, limit=LIMIT) is expected

    @rule(user=USERS, number=SOCKETS, name=IDS, guarded=st.booleans())
    def read(self, user: str, number: int, name: str, *, guarded: bool) -> None:
        session = self.session(user, number)
        expected = self.expected(user, f"{session}/{name}", guarded=guarded)
        until = self.now + 10
        found = self.table.register(
            user, name, self.now, limit=LIMIT, session=session, read_until=until, is_guarded=guarded
        )
        assert found is expected
        if expected is Registration.ACCEPTED:
            self.reads[session][name] = until

    @rule(user=USERS, number=SOCKETS)
    def own_read(self, user: str, number: int) -> None:
        session = self.session(user, number)
        self.reads[session]["own"] = self.now + 5
        self.table.register_own_read(user, "own", session, self.now + 5)

    @rule(user=USERS, number=SOCKETS, name=IDS)
    def acknowledge(self, user: str, number: int, name: str) -> None:
        session = self.session(user, number)
        owed = self.awaited[session].get(name, True) is False
        assert self.table.acknowledge(user, name, session) is owed
        if owed:
            self.awaited[session][name] = True

    @rule(user=USERS, name=IDS)
    def release(self, user: str, name: str) -> None:
        self.uncount(user, name)
        self.table.release(user, name)

    @rule(user=USERS, number=SOCKETS, name=IDS)
    def detach(self, user: str, number: int, name: str) -> None:
        self.uncount(user, name)
        session = self.session(user, number)
        self.awaited[session].pop(name, None)
        self.table.detach(user, name, session)

    @rule(user=USERS, name=IDS)
    def settle(self, user: str, name: str) -> None:
        self.uncount(user, name)
        for session, awaited in self.awaited.items():
            if session.startswith(user):
                awaited.pop(name, None)
        self.table.settle(user, name, ANSWER)
        self.answered(user, name)

    @rule(user=USERS, name=IDS)
    def resolve(self, user: str, name: str) -> None:
        self.table.resolve(user, name, ANSWER)
        self.answered(user, name)

    def answered(self, user: str, name: str) -> None:
        assert all(future.done() for owner, request, _, future in self.futures if (owner, request) == (user, name))

    @rule(user=USERS, number=SOCKETS, name=st.sampled_from(["a", "b", "own"]))
    def settle_read(self, user: str, number: int, name: str) -> None:
        session = self.session(user, number)
        self.uncount(user, f"{session}/{name}")
        waited = self.reads[session].pop(name, None) is not None
        assert self.table.settle_read(user, name, session) is waited

    @rule(user=USERS, number=SOCKETS)
    def close(self, user: str, number: int) -> None:
        session = self.session(user, number)
        for name in self.reads.pop(session, {}):
            self.uncount(user, f"{session}/{name}")
        self.awaited.pop(session, None)
        self.open.discard(session)
        self.closed += 1
        self.table.close(user, session)

    @rule(user=USERS, name=IDS)
    def wait(self, user: str, name: str) -> None:
        future = Future()
        context = self.table.wait(user, name, future)  # type: ignore[arg-type]
        context.__enter__()
        self.futures.append((user, name, context, future))

    @rule()
    def stop_waiting(self) -> None:
        while self.futures:
            self.futures.pop()[2].__exit__(None, None, None)

    @rule(seconds=st.sampled_from([1.0, 31.0, STALE_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts_agree(self) -> None:
        for user in ("u", "v"):
            names = sorted(name.rpartition("/")[2] for owner, name in self.counted if owner == user)
            assert sorted(self.table.unanswered(user)) == names
        assert len(self.table._admitted) == len(self.admitted)

    @invariant()
    def sessions_agree(self) -> None:
        for session in self.open:
            for name in ("a", "b", "c", "d"):
                assert self.table.is_awaited(session[0], name, session) is (name in self.awaited[session])
                assert self.table.is_reading(session, name) is (name in self.reads[session])
            assert self.table.next_deadline(session) == min(self.reads[session].values(), default=None)

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.stop_waiting()
            for session in list(self.open):
                self.table.close(session[0], session)
            for user in ("u", "v"):
                self.table.forget_stale(user, self.now + STALE_SECONDS)
                assert not self.table.has_requests(user), "nothing is left behind"
            assert not self.table._sockets
            assert not self.table._admitted


TestTables = Tables.TestCase
TestTables.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
