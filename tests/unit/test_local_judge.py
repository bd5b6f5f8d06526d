"""When the supervisor thinks a program well, unwell or frozen."""

from infrastructure.local.judge import Judge
from infrastructure.local.probes import Health

SILENT, SICK, LIVE, READY = Health.SILENT, Health.SICK, Health.LIVE, Health.READY


def given(*probes: tuple[float, Health]) -> tuple[Judge, list[str | None]]:
    """A life that began at 0, and what was said after each probe."""
    judge = Judge(began=0.0)
    return judge, [judge.note(health, now) for now, health in probes]


def test_a_start_goes_from_silence_to_ready() -> None:
    judge, said = given((0.1, SILENT), (1, SILENT), (2, LIVE), (3, READY))
    assert said == [None] * 4
    assert judge.state == "ready"


def test_a_start_may_be_slow_but_not_endless() -> None:
    assert given((59, SILENT))[1] == [None]
    assert given((61, SILENT))[1] == ["gave no good answer within 60 s of its start"]
    assert given((10, SICK), (61, SICK))[1][-1] == "gave no good answer within 60 s of its start"


def test_waiting_for_its_servers_is_no_fault_however_long() -> None:
    judge, said = given(*[(float(second), LIVE) for second in range(1, 600)])
    assert set(said) == {None}
    assert judge.state == "starting"


def test_one_lost_probe_changes_nothing() -> None:
    judge, said = given((1, READY), (2, SILENT), (3, READY))
    assert said == [None] * 3
    assert judge.ready == 1


def test_two_lost_probes_are_degraded_and_a_frozen_one_is_killed_within_eight_seconds() -> None:
    judge, said = given((1, READY), (3, SILENT), (5, SILENT))
    assert (judge.state, said[-1]) == ("degraded", None)
    assert judge.note(SILENT, 7.1) == "has not answered for 6 s"


def test_a_supervisor_that_slept_does_not_blame_the_others() -> None:
    # A laptop was closed for an hour: one miss afterwards is one miss.
    assert given((1, READY), (3600, SILENT), (3601, READY))[1] == [None] * 3


def test_one_that_says_it_is_unwell_has_half_a_minute() -> None:
    judge, said = given((1, READY), (2, SICK), (31, SICK))
    assert (judge.state, set(said)) == ("degraded", {None})
    assert judge.note(SICK, 32) == "has been unwell for 31 s"


def test_crashes_are_forgiven_after_half_a_minute_without_a_break() -> None:
    judge, _ = given((1, READY), (20, LIVE), (25, READY))
    assert not judge.forgiven(40)
    assert judge.forgiven(56)
