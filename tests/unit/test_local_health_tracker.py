"""Health of a program as derived from its probes: ready, degraded, frozen."""

from infrastructure.local.servers.probes import Health
from infrastructure.local.supervision.health_tracker import HealthTracker

SILENT, SICK, LIVE, READY = Health.NO_ANSWER, Health.UNHEALTHY, Health.LIVE, Health.READY


def tracker_after(*probes: tuple[float, Health]) -> tuple[HealthTracker, list[str | None]]:
    """Return a tracker that started at 0 and has recorded the probes, and the reason to kill after each probe."""
    tracker = HealthTracker(started_at=0.0)
    return tracker, [tracker.record(health, now) for now, health in probes]


def test_a_start_goes_from_no_answer_to_ready() -> None:
    tracker, reasons = tracker_after((0.1, SILENT), (1, SILENT), (2, LIVE), (3, READY))
    assert reasons == [None] * 4
    assert tracker.state == "ready"


def test_a_program_that_is_not_live_within_a_minute_is_killed() -> None:
    assert tracker_after((59, SILENT))[1] == [None]
    assert tracker_after((61, SILENT))[1] == ["was not live within 60 s of its start"]
    assert tracker_after((10, SICK), (61, SICK))[1][-1] == "was not live within 60 s of its start"


def test_a_program_may_wait_for_its_servers_indefinitely() -> None:
    tracker, reasons = tracker_after(*[(float(second), LIVE) for second in range(1, 600)])
    assert set(reasons) == {None}
    assert tracker.state == "starting"


def test_one_missed_probe_changes_nothing() -> None:
    tracker, reasons = tracker_after((1, READY), (2, SILENT), (3, READY))
    assert reasons == [None] * 3
    assert tracker.ready_since == 1


def test_two_missed_probes_degrade_and_a_frozen_program_is_killed_within_eight_seconds() -> None:
    tracker, reasons = tracker_after((1, READY), (3, SILENT), (5, SILENT))
    assert (tracker.state, reasons[-1]) == ("degraded", None)
    assert tracker.record(SILENT, 7.1) == "has not answered for 6 s"


def test_a_pause_of_the_supervisor_counts_as_one_missed_probe() -> None:
    # A laptop was closed for an hour: one missed probe afterwards is still one missed probe.
    assert tracker_after((1, READY), (3600, SILENT), (3601, READY))[1] == [None] * 3


def test_an_unhealthy_program_has_half_a_minute_to_recover() -> None:
    tracker, reasons = tracker_after((1, READY), (2, SICK), (31, SICK))
    assert (tracker.state, set(reasons)) == ("degraded", {None})
    assert tracker.record(SICK, 32) == "has been unhealthy for 31 s"


def test_crashes_are_forgotten_after_half_a_minute_of_uninterrupted_readiness() -> None:
    tracker, _ = tracker_after((1, READY), (20, LIVE), (25, READY))
    assert not tracker.is_stable(40)
    assert tracker.is_stable(56)
