from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_service import model
from cart_service.store import CartStore
from contracts import cart, inventory
from tests.testkit.cart_fixtures import GBP, NOW, MemoryTable


def line(product: str = "TEAPOT", quantity: int = 2) -> inventory.Line:
    return inventory.Line(product=product, quantity=quantity, price=GBP)


def decided(
    revision: int, *lines: inventory.Line, outcome: inventory.Outcome | None = None, **more: object
) -> inventory.Decided:
    until = NOW + timedelta(minutes=15) if lines else None
    return inventory.Decided.model_validate(
        {
            "user_id": "ann",
            "outcome": outcome or inventory.Removed(product="MUG", version=revision),
            "cart": inventory.Cart(revision=revision, expires_at=until, lines=lines),
            **more,
        }
    )


CHANGES: list[cart.Change] = [
    cart.Add(user_id="ann", product="TEAPOT", quantity=2),
    cart.Set(user_id="ann", product="TEAPOT", quantity=0),
    cart.Remove(user_id="ann", product="TEAPOT"),
    cart.Clear(user_id="ann"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_pending_request_asks_the_same_again(change: cart.Change) -> None:
    state = model.add_pending(model.Cart(), "r1", change, accepted=NOW)
    (pending,) = state.pending
    assert model.retry_request("ann", pending) == model.to_inventory_request(change)


def test_a_request_is_noted_once() -> None:
    once = model.add_pending(model.Cart(), "r1", CHANGES[0], accepted=NOW)
    assert model.add_pending(once, "r1", CHANGES[0], accepted=NOW) is once


@pytest.mark.parametrize("change", CHANGES[1:])
def test_a_removed_line_is_hidden_at_once(change: cart.Change) -> None:
    state = model.apply_decision(model.Cart(), "r0", decided(1, line()))
    assert model.cart_view(state).lines == (line(),)
    assert model.cart_view(model.add_pending(state, "r1", change, accepted=NOW)).lines == ()


def test_an_added_line_is_not_shown_before_it_is_granted() -> None:
    assert model.cart_view(model.add_pending(model.Cart(), "r1", CHANGES[0], accepted=NOW)).lines == ()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=30))
def test_whatever_the_order_the_highest_revision_stays(arrivals: list[tuple[int, int]]) -> None:
    state = model.Cart()
    for revision, quantity in arrivals:
        state = model.apply_decision(
            state, "r", decided(revision, line(quantity=revision + 1)) if revision else decided(0)
        )
        assert quantity  # only the order matters
    best = max((revision for revision, _ in arrivals), default=0)
    assert state.revision == best
    assert [each.quantity for each in state.lines] == ([best + 1] if best else [])


def test_an_outcome_settles_its_request_even_when_it_is_old_news() -> None:
    state = model.add_pending(
        model.apply_decision(model.Cart(), "r0", decided(5, line())), "r1", CHANGES[0], accepted=NOW
    )
    after = model.apply_decision(state, "r1", decided(3))
    assert after.pending == ()
    assert after.revision == 5


OUTCOMES: list[tuple[inventory.Outcome, type[cart.Response]]] = [
    (inventory.Held(product="TEAPOT", quantity=2, line_quantity=2, expires_at=NOW, version=1), cart.Held),
    (inventory.Refused(product="TEAPOT", reason="out_of_stock", available=1), cart.Refused),
    (inventory.Removed(version=2), cart.Removed),
    (inventory.Expired(lines=(inventory.GivenUp(product="TEAPOT", quantity=2),), version=2), cart.Expired),
    (inventory.IdReused(), cart.Error),
    (inventory.BadField(field="time"), cart.Error),
    (inventory.Available(product="TEAPOT", available=None), cart.Availability),
    (inventory.SnapshotTaken(), cart.Snapshot),
    (inventory.LookedUp(outcomes=(), unknown=()), cart.Resumed),
]


@pytest.mark.parametrize(("outcome", "response"), OUTCOMES)
def test_each_outcome_has_its_own_response(outcome: inventory.Outcome, response: type[cart.Response]) -> None:
    told = model.to_response(model.Cart(), "r1", decided(2, outcome=outcome, session="s"))
    assert isinstance(told, response)
    assert cart.RESPONSE_REGISTRY.types[told.TYPE] is response


@pytest.mark.parametrize("outcome", [each for each, _ in OUTCOMES[6:]])
def test_a_read_without_a_session_is_not_delivered(outcome: inventory.Outcome) -> None:
    assert model.to_response(model.Cart(), "r1", decided(2, outcome=outcome)) is None


def test_a_client_that_resumes_gets_decided_pending_and_unknown_requests() -> None:
    state = model.add_pending(
        model.apply_decision(model.Cart(), "r0", decided(1, line())), "r2", CHANGES[0], accepted=NOW
    )
    stored = inventory.Stored(id="r1", outcome=inventory.Removed(version=1))
    looked_up = inventory.LookedUp(outcomes=(stored,), unknown=("r2", "r3"))
    told = model.to_response(state, "r9", decided(1, line(), outcome=looked_up, session="s"))
    assert isinstance(told, cart.Resumed)
    assert (told.outcomes, told.pending, told.unknown) == ((stored,), ("r2",), ("r3",))
    assert told.cart == model.cart_view(state)


def test_reads_are_given_up_after_thirty_seconds() -> None:
    assert model.is_fresh(NOW, now=NOW + timedelta(seconds=30))
    assert not model.is_fresh(NOW, now=NOW + timedelta(seconds=31))


def test_pending_requests_are_retried_less_and_less_often() -> None:
    reminders = model.RetrySchedule()
    reminders.add("ann", "r1", now=NOW)
    asked = []
    for second in range(400):
        asked += [second for _ in reminders.take_due(now=NOW + timedelta(seconds=second), limit=10)]
    assert asked == [5, 15, 35, 65, 105, 155, 215, 275, 335, 395]
    reminders.discard("ann", "r1")
    assert list(reminders.take_due(now=NOW + timedelta(days=1), limit=10)) == []


def test_reminders_are_bounded_a_round() -> None:
    reminders = model.RetrySchedule()
    reminders.rebuild([("ann", f"r{number}") for number in range(250)], now=NOW)
    later = NOW + timedelta(seconds=5)
    rounds = [len(list(reminders.take_due(now=later, limit=100))) for _ in range(4)]
    assert rounds == [100, 100, 50, 0]


def test_lines_that_reappear_after_an_old_removal_are_sent() -> None:
    kept = model.Cart(revision=9, expires_at=NOW + timedelta(minutes=15), lines=(line("MUG"), line()))
    old = inventory.Removed(version=3)
    before = model.add_pending(kept, "r1", CHANGES[3], accepted=NOW)
    again = decided(9, line("MUG"), line(), outcome=old, replayed=True)
    assert model.cart_view(before).lines == ()
    assert model.unhides_lines(before, model.apply_decision(before, "r1", again), again)
    fed_back = decided(3, outcome=old)  # its own record, as it was when it was news
    assert model.unhides_lines(before, model.apply_decision(before, "r1", fed_back), fed_back)
    late = inventory.Refused(product="TEAPOT", reason="expired", available=None)
    refused = decided(9, line("MUG"), line(), outcome=late)
    before = model.add_pending(kept, "r2", CHANGES[2], accepted=NOW)
    assert model.unhides_lines(before, model.apply_decision(before, "r2", refused), refused)


def test_an_immediate_removal_is_sent_as_its_outcome_only() -> None:
    kept = model.Cart(revision=9, expires_at=NOW + timedelta(minutes=15), lines=(line("MUG"), line()))
    before = model.add_pending(kept, "r1", CHANGES[2], accepted=NOW)
    done = decided(10, line("MUG"), outcome=inventory.Removed(product="TEAPOT", version=10))
    assert not model.unhides_lines(before, model.apply_decision(before, "r1", done), done)
    after = model.apply_decision(before, "r1", done)
    twice = decided(10, line("MUG"), outcome=inventory.Removed(product="TEAPOT", version=10), replayed=True)
    assert not model.unhides_lines(after, model.apply_decision(after, "r1", twice), twice)


def test_an_unreadable_stored_cart_is_empty_and_blocks_no_other() -> None:
    pending = model.add_pending(model.Cart(), "r1", cart.Add(user_id="bob", product="MUG", quantity=1), accepted=NOW)
    table = MemoryTable()
    table.kept = {b"ann": b"\xff\xfe", b"bob": pending.model_dump_json().encode()}
    carts = CartStore(table)
    assert list(carts.pending_requests()) == [("bob", "r1")]
    before = carts.get("ann")
    assert before == model.Cart()
    after = model.apply_decision(before, "r2", decided(7, line()))
    carts.put("ann", before, after)
    carts.flush()
    assert CartStore(carts.table).get("ann").lines == (line(),), "the next decision brings all of it back"


def test_a_cart_that_the_table_does_not_take_is_kept_until_it_does() -> None:
    class Full(MemoryTable):
        full = True

        def put(self, key: bytes, value: bytes) -> None:
            if self.full:
                raise RuntimeError("not now")
            super().put(key, value)

    table = Full()
    carts, after = CartStore(table), model.Cart(revision=3, lines=(line(),))
    carts.put("ann", model.Cart(), after)
    with pytest.raises(RuntimeError):
        carts.flush()
    assert carts.get("ann") == after
    table.full = False
    carts.flush()
    assert CartStore(table).get("ann") == after
