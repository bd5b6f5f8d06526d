"""The rules of delivery: a parcel only moves forward, is called off in time or not at all; all moves are published."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.deliveries import Book, CalledOff, CallOff, Request
from contracts.inventory import Line, Money
from contracts.orders import Address
from order_service.delivery.carrier import FAIL_MARKER, SimulatedCarrier
from order_service.delivery.model import (
    FINAL_STATES,
    Booking,
    Parcel,
    Scan,
    after_booking,
    after_call_off,
    after_scans,
    apply_request,
    event_of,
    next_call,
)

OF = {"order_id": "o-1", "user_id": "ann", "shipment_id": "s-1"}
ADDRESS = Address(name="Ann", line1="1 High St", city="Leeds", postal_code="LS1 1AA", country="GB")
BOOK = Book(**OF, address=ADDRESS, lines=(Line(product="MUG", quantity=1, price=Money(amount=1, currency="GBP")),))
NEW = Parcel("s-1", "o-1", "ann")
NOW = datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CARRIER = SimulatedCarrier(ship=3 * SECOND, deliver=3 * SECOND)


def words(parcel: Parcel) -> list[str]:
    return [move.to for move in parcel.moves]


def test_a_parcel_is_booked_once_and_its_events_are_published_again() -> None:
    first = apply_request(NEW, BOOK)
    assert (first.must_call_carrier, first.must_republish, next_call(first.parcel)) == (True, False, "book")
    again = apply_request(first.parcel, BOOK)
    assert (again.parcel, again.must_call_carrier, again.must_republish) == (first.parcel, False, False)
    known = after_booking(first.parcel, Booking("c", "t", NOW))
    assert apply_request(known, BOOK).must_republish is True


def test_one_that_was_called_off_before_it_was_booked_never_is() -> None:
    step = apply_request(NEW, CallOff(**OF))
    assert (step.must_call_carrier, next_call(step.parcel)) == (True, "call-off")
    step = apply_request(step.parcel, BOOK)
    assert (step.must_call_carrier, next_call(step.parcel)) == (False, "call-off")
    gone = after_call_off(step.parcel, NOW)
    assert (next_call(gone), words(gone), apply_request(gone, BOOK).must_republish) == (None, ["called-off"], True)
    assert isinstance(event_of(gone, gone.moves[0]), CalledOff)


def test_one_that_is_gone_is_not_asked_back() -> None:
    parcel = after_booking(apply_request(NEW, BOOK).parcel, Booking("c", "t", NOW))
    gone = after_scans(parcel, (Scan("shipped", NOW, None),))
    told = apply_request(gone, CallOff(**OF))
    assert (told.parcel, told.must_call_carrier, told.must_republish) == (gone, False, True)
    refused = after_scans(replace(parcel, intent="call-off"), (Scan("shipped", NOW, None),))
    assert next_call(refused) == "track"


@given(st.lists(st.sampled_from(["booked", "shipped", "delivered", "failed"]), max_size=12))
def test_whatever_the_carrier_says_in_whatever_order_a_parcel_only_moves_forward(states: list[str]) -> None:
    parcel = after_booking(apply_request(NEW, BOOK).parcel, Booking("c", "t", NOW))
    for state in states:
        parcel = after_scans(parcel, (Scan(state, NOW, None),))  # type: ignore[arg-type]
    assert words(parcel) in (
        ["booked"],
        ["booked", "shipped"],
        ["booked", "shipped", "delivered"],
        ["booked", "shipped", "failed"],
    )
    assert (parcel.address is None) == (parcel.state in FINAL_STATES), "an address is kept while somebody needs it"


@settings(max_examples=300, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.floats(0, 4), st.sampled_from([BOOK, CallOff(**OF), None])), max_size=12),
)
def test_with_the_simulated_carrier_it_always_ends_and_a_call_off_is_answered(
    fails: bool,
    steps: list[tuple[float, Request | None]],
) -> None:
    address = ADDRESS.model_copy(update={"line2": FAIL_MARKER}) if fails else ADDRESS
    parcel, now = NEW, NOW
    for pause, request in [*steps, (0.0, BOOK), (3.0, None), (3.0, None)]:
        now += pause * SECOND
        if request is not None:
            parcel = apply_request(parcel, request).parcel
            if parcel.address == ADDRESS:
                parcel = replace(parcel, address=address)
        parcel = asyncio.run(_asked(parcel, now)) if parcel.address or parcel.intent == "call-off" else parcel
    assert parcel.state in FINAL_STATES
    assert words(parcel)[-1] == parcel.state
    assert [*dict.fromkeys(words(parcel))] == words(parcel), "each move once"
    if "called-off" in words(parcel):
        assert "shipped" not in words(parcel)
    else:
        assert parcel.state == ("failed" if fails else "delivered")


async def _asked(parcel: Parcel, now: datetime) -> Parcel:
    """As the shell does it."""
    question = next_call(parcel)
    if question is None:
        return parcel
    if question == "call-off" and await CARRIER.call_off(parcel, now):
        return after_call_off(parcel, now)
    if question == "book":
        parcel = after_booking(parcel, await CARRIER.book(parcel, now))
    return after_scans(parcel, tuple(await CARRIER.track(parcel, now)))
