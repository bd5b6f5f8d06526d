"""Resume after a disconnect at every possible point: the client ends in the same state as one that stayed connected."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_service import model as cart_model
from load.protocol import ClientState, Frame
from rest_api.websocket.in_flight import InFlight
from rest_api.websocket.session import Session
from tests.testkit.effort import histories
from tests.testkit.resumption import Cut, Fate, ResumptionRun, Schedule

SCHEDULES: tuple[Schedule, ...] = ("fair", "late acknowledgements", "long line", "slow inventory")
UNDER_WAY = [(up, down) for up in (False, True) for down in (False, True)]


def faults(schedule: Schedule, *cuts: Cut) -> list[str]:
    return list(ResumptionRun(schedule, cuts).run().faults())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resume_after_a_cut_at_every_frame(schedule: Schedule) -> None:
    whole = ResumptionRun(schedule).run()
    assert list(whole.faults()) == []
    assert whole.cut.on_line >= 29, "or there would be few places to cut"
    # The frames of the first line and what follows on the second: a cut at 0 is before the first of them.
    for after in range(whole.cut.on_line + 1):
        for up, down in UNDER_WAY:
            assert faults(schedule, Cut(after, up, down)) == [], (after, up, down)
            assert faults(schedule, Cut(after, up, down, half_open=True)) == [], (after, up, down)


CUTS = st.builds(Cut, st.integers(0, 30), st.booleans(), st.booleans(), st.booleans())
FATES: st.SearchStrategy[list[Fate]] = st.lists(st.sampled_from(("kept", "kept", "late", "lost")), max_size=30)


@given(st.lists(CUTS, max_size=4), FATES, st.integers(0, 2**32))
@settings(max_examples=histories(300), deadline=None)
def test_resume_after_random_cuts_and_unacknowledged_sends(cuts: list[Cut], fates: list[Fate], seed: int) -> None:
    # Five sockets a user: those that the edge does not know to be gone count.
    shop = ResumptionRun("random", [cut for cut in cuts if cut.after <= 30][:4], fates, seed)
    try:
        shop.run()
    except AssertionError as error:
        raise AssertionError((cuts, fates, seed)) from error
    remaining, shop.cuts = shop.cuts, type(shop.cuts)()
    assert list(shop.faults()) == [], remaining


def view_after_a_removal_sent_again() -> tuple[int, dict[str, int]]:
    """Return the view after clear, add, a repetition of that `clear`, and a read of the cart."""
    clear = {"id": "c2", "type": "clear"}
    frames = (
        {"id": "c1", "type": "add", "product": "TEAPOT", "quantity": 1},
        clear,
        {"id": "c3", "type": "add", "product": "MUG", "quantity": 2},
    )
    shop = ResumptionRun(script=[("cut", frame) for frame in frames]).run()
    assert (shop.cut.conversation.version, shop.cut.conversation.lines) == (3, {"MUG": 2})
    shop.cut.send(clear)
    shop.all_but_inventory()
    shop.cut.say({"id": "c4", "type": "cart"})
    shop.all_but_inventory()
    assert shop.cut.conversation.lines == {}, "hidden at once, also when it was done long ago"
    shop.run()
    return shop.cut.conversation.version, shop.cut.conversation.lines


def test_lines_hidden_by_a_repeated_removal_reappear() -> None:
    assert view_after_a_removal_sent_again() == (3, {"MUG": 2})


# ---- the proof can fail ---------------------------------------------------------------------------------------------


def exhaustive(schedule: Schedule) -> list[str]:
    """Return the first fault at any cut."""
    for after in range(33):
        for up, down in UNDER_WAY:
            try:
                shop = ResumptionRun(schedule, [Cut(after, up, down)]).run()
            except AssertionError as error:
                return [str(error)]
            shop.cuts.clear()
            if found := list(shop.faults()):
                return found
    return []


def test_planted_a_client_that_does_not_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClientState, "resume", lambda _: {"id": "r", "type": "cart"})
    assert exhaustive("fair")


def test_planted_a_client_that_repeats_unknown_requests_under_new_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    hear = ClientState.apply

    def twice(self: ClientState, frame: Frame) -> object:
        step = hear(self, frame)
        if frame["type"] == "resumed":
            step.send = [{**said, "id": f"{said['id']}-again"} for said in step.send]
        return step

    monkeypatch.setattr(ClientState, "apply", twice)
    assert exhaustive("fair")


def test_planted_a_session_that_omits_pending_before_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "on_outcome", lambda _self, _id, frame: [frame])
    monkeypatch.setattr(InFlight, "settle", lambda self, user_id, request_id, _: self.release(user_id, request_id))
    assert exhaustive("late acknowledgements") == ["`pending` after its outcome"]


def test_planted_repeated_removals_hide_lines_permanently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cart_model, "unhides_lines", lambda *_: False)
    assert view_after_a_removal_sent_again() == (3, {})
