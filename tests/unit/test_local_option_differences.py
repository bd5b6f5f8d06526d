"""`up` on a running shop: what it asks for that the shop is not."""

import json
from typing import Any

import pytest

from infrastructure.local.supervision import services
from infrastructure.local.supervision.option_differences import differences, setting_hashes
from infrastructure.local.supervision.startup_plan import UpOptions

KEY = "a secret of the root directory"
OWN = {"HOLDFAST_KAFKA": "127.0.0.1:9092", "HOLDFAST_ROOT": "/here"}
RUNNING = ("edge", "cart-1", "cart-2", "inventory-1", "kafka", "postgres")


def options(workers: str = "", only: str = "", *, infra_only: bool = False, limits: bool = True) -> UpOptions:
    """Return the options as the command line has them."""
    named = frozenset(piece.partition("=")[0] for piece in workers.split(",") if piece)
    return UpOptions(services.parse_workers(workers), limits, infra_only, services.parse_only(only), named)


def asked(given: UpOptions, environ: dict[str, str] | None = None, **state: Any) -> list[str]:
    """Return the differences with a shop that was started with one setting."""
    running = {
        "services": {name: {} for name in RUNNING},
        "limits": "on",
        "settings": setting_hashes({"HOLDFAST_LIMIT_CHANGES": "7", "HOME": "/"}, KEY),
    }
    return differences(given, environ or {}, KEY, running | state, OWN)


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        (options(), {}, []),
        (options("cart=2"), {}, []),
        (options("cart=2,inventory=1"), {}, []),
        (options("cart=3"), {}, ["--workers cart=3 (running: 2)"]),
        (options("cart=1,inventory=2"), {}, ["--workers cart=1 (running: 2)", "--workers inventory=2 (running: 1)"]),
        (options("orders=1"), {}, ["--workers orders=1 (running: 0)"]),
        (options(only="edge,cart,inventory"), {}, []),
        (options(only="edge,cart"), {}, ["--only cart,edge (running: cart,edge,inventory)"]),
        (options(infra_only=True), {}, ["--infra-only (running: cart,edge,inventory)"]),
        (options(limits=False), {}, ["--no-limits (running: with limits)"]),
        (options(), {"HOLDFAST_LIMIT_CHANGES": "7"}, []),
        (options(), {"holdfast_limit_changes": "8"}, ["the setting HOLDFAST_LIMIT_CHANGES"]),
        (options(), {"HOLDFAST_PREFIX": "mine."}, ["the setting HOLDFAST_PREFIX"]),
        (options(), {"HOLDFAST_ROOT": "/there", "HOLDFAST_HTTP_URL": "http://x", "PATH": "/bin"}, []),
        (options(), {"HOLDFAST_KAFKA": "127.0.0.1:9092"}, []),
        (options(), {"HOLDFAST_KAFKA": "elsewhere:9092"}, ["the setting HOLDFAST_KAFKA"]),
    ],
)
def test_only_what_is_asked_for_and_differs_is_named(
    given: UpOptions, environ: dict[str, str], expected: list[str]
) -> None:
    assert asked(given, environ) == expected


def test_a_shop_that_runs_no_services_has_none_of_those_asked_for() -> None:
    assert asked(options(infra_only=True), services={"kafka": {}}) == []
    assert asked(options(only="edge"), services={"kafka": {}}) == ["--only edge (running: no services)"]
    assert asked(options(limits=False), limits="off") == []


def test_settings_of_a_shop_that_recorded_none_are_not_compared() -> None:
    assert asked(options(), {"HOLDFAST_PREFIX": "mine."}, settings=None) == []


def test_the_recorded_settings_contain_no_value() -> None:
    recorded = setting_hashes({"HOLDFAST_SMTP_URL": "smtp://ann:password@mail"}, KEY)
    assert "password" not in json.dumps(recorded)
    assert recorded != setting_hashes({"HOLDFAST_SMTP_URL": "smtp://ann:password@mail"}, "another secret")
