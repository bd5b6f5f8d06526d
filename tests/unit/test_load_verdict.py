"""A verdict that no history can fail proves nothing: one history for each thing that can be wrong."""

from dataclasses import replace
from typing import Any

import pytest

from infrastructure.local.commands.audit import merge_audits
from load.verdict import Attempt, Finding, FindingKind, RushVerdict, judge_rush

PRODUCT = "PROOF-1"


def held(quantity: int = 1, version: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "type": "held",
        "product": PRODUCT,
        "quantity": quantity,
        "line_quantity": quantity,
        "version": version,
        **more,
    }


def refused(reason: str = "out_of_stock", **more: Any) -> dict[str, Any]:
    return {"type": "refused", "product": PRODUCT, "reason": reason, "available": 0, **more}


def history(*answers: tuple[dict[str, Any], ...]) -> list[Attempt]:
    return [Attempt(f"user-{number}", f"request-{number}", each) for number, each in enumerate(answers)]


def verdict(attempts: list[Attempt], units: int = 2, available: int | None = 0, **more: Any) -> RushVerdict:
    return judge_rush("rush", attempts, product=PRODUCT, units=units, available=available, **more)


RIGHT = history((held(), held(replayed=True)), (held(),), (refused(), refused(replayed=True)))


def kinds(of: RushVerdict) -> set[FindingKind]:
    return {finding.kind for finding in of.findings}


def test_a_right_history_is_right() -> None:
    right = verdict(RIGHT)
    assert right.ok
    assert (right.held, right.refused, right.unanswered, right.repeats) == (2, 1, 0, 2)
    assert right.as_json()["ok"] is True


@pytest.mark.parametrize(
    ("attempts", "available", "found"),
    [
        (history((held(),), (held(),), (held(),)), -1, {FindingKind.OVERSOLD}),
        (history((held(),), (held(),), (held(),)), 0, {FindingKind.OVERSOLD, FindingKind.WRONG_STOCK}),
        (history((held(),), (refused(),), (refused(),)), 1, {FindingKind.UNDERSOLD}),
        (history((held(),), (held(),), ()), 0, {FindingKind.UNANSWERED}),
        (
            history((held(),), (held(),), (refused(), held(replayed=True))),
            -1,
            {FindingKind.OVERSOLD, FindingKind.CONTRADICTED},
        ),
        # Two grants for one request count twice, also when each looks right by itself.
        (
            history((held(), held(version=2)), (held(),), (refused(),)),
            -1,
            {FindingKind.OVERSOLD, FindingKind.CONTRADICTED},
        ),
        (history((held(),), (held(),), (refused("failed"),)), 0, {FindingKind.WRONG_ANSWER}),
        (history((held(),), (held(),), ({"type": "error", "code": "internal"},)), 0, {FindingKind.WRONG_ANSWER}),
        (history((held(2),), (refused(),), (refused(),)), 0, {FindingKind.WRONG_ANSWER}),
        (history((held(),), (held(product="OTHER"),), (refused(),)), 0, {FindingKind.WRONG_ANSWER}),
        (RIGHT, 1, {FindingKind.WRONG_STOCK}),
        (RIGHT, None, {FindingKind.WRONG_STOCK}),
    ],
)
def test_a_wrong_history_is_found_out(attempts: list[Attempt], available: int | None, found: set[FindingKind]) -> None:
    wrong = verdict(attempts, available=available)
    assert not wrong.ok
    assert kinds(wrong) == found


def test_a_repeat_without_an_answer_is_found_out() -> None:
    attempts = [*RIGHT[:1], replace(RIGHT[1], due=2), *RIGHT[2:]]
    assert kinds(verdict(attempts)) == {FindingKind.REPEAT_UNANSWERED}


def test_buyers_with_one_id_prove_nothing() -> None:
    attempts = [*RIGHT[:2], replace(RIGHT[2], request_id=RIGHT[0].request_id)]
    assert kinds(verdict(attempts)) == {FindingKind.SHARED_ID}


def test_findings_of_the_audit_refute_a_rush() -> None:
    assert kinds(verdict(RIGHT, others=[Finding(FindingKind.AUDIT, "a ghost")])) == {FindingKind.AUDIT}


def test_fewer_buyers_than_units_leave_the_rest() -> None:
    assert verdict(history((held(),)), units=3, available=2).ok


def test_audits_add_up_and_one_violation_is_enough() -> None:
    right = {"ok": True, "violations": [], "digest": "a", "figures": {"held": 2, "products": 3}}
    wrong = {"ok": False, "violations": ["a ghost"], "digest": "b", "figures": {"held": 1}}
    whole = merge_audits({"one": right, "two": wrong})
    assert (whole["ok"], whole["violations"], whole["figures"]) == (False, ["a ghost"], {"held": 3, "products": 3})
    assert merge_audits({"one": right})["ok"] is True
    assert whole["digest"] == merge_audits({"two": wrong, "one": right})["digest"]
    assert whole["digest"] != merge_audits({"two": {**wrong, "digest": "c"}, "one": right})["digest"]
