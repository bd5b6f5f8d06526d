"""Verdict on a rush of buyers: each answered once, no unit granted twice, none lost.

No I/O. The same verdict is used for the real shop and the control with the classic race: a verdict that cannot fail
would prove nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from load.protocol import Frame

NON_CONTENT_FIELDS: Final = frozenset({"replayed", "traceparent"})
"""Fields that may differ between two answers to one request."""


class FindingKind(StrEnum):
    """Kind of error."""

    OVERSOLD = "oversold"
    UNDERSOLD = "undersold"
    UNANSWERED = "unanswered"
    REPEAT_UNANSWERED = "repeat_unanswered"
    CONTRADICTED = "contradicted"
    WRONG_ANSWER = "wrong_answer"
    SHARED_ID = "shared_id"
    WRONG_STOCK = "wrong_stock"
    WRONG_CART = "wrong_cart"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Finding:
    """One error found."""

    kind: FindingKind
    detail: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One buyer's request for one unit and every terminal answer to it, in order of arrival."""

    user_id: str
    request_id: str
    answers: tuple[Frame, ...]
    due: int = 1
    """Minimum number of answers: 2 if the frame was sent again after its first answer."""


@dataclass(frozen=True, slots=True)
class RushVerdict:
    """Result of `attempts` requests for one unit each, with `units` in stock."""

    name: str
    units: int
    attempts: int
    held: int
    """Units granted in answers to buyers; two different grants for one request count twice."""
    refused: int
    unanswered: int
    repeats: int
    """Answers beyond the first of each request; all are equal to it unless a finding says otherwise."""
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if there are no findings."""
        return not self.findings

    def has_finding(self, kind: FindingKind) -> bool:
        """Return True if there is a finding of this kind."""
        return any(finding.kind is kind for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {
            "name": self.name,
            "ok": self.ok,
            "units": self.units,
            "attempts": self.attempts,
            "held": self.held,
            "refused": self.refused,
            "unanswered": self.unanswered,
            "repeats": self.repeats,
            "findings": [{"kind": str(finding.kind), "detail": finding.detail} for finding in self.findings],
        }


def judge_rush(
    name: str,
    attempts: Sequence[Attempt],
    *,
    product: str,
    units: int,
    available: int | None,
    others: Sequence[Finding] = (),
) -> RushVerdict:
    """Return the verdict on one rush for `product`.

    `available` is the catalogue's quantity afterwards, or `None` if it was not read or the product is unknown. `others`
    are findings from elsewhere (audit, carts) that belong to this rush.
    """
    findings = list(others)
    held = refused = unanswered = repeats = 0
    for attempt in attempts:
        contents = _distinct(attempt.answers)
        repeats += max(0, len(attempt.answers) - 1)
        grants = [answer for answer in contents if answer["type"] == "held"]
        held += sum(answer["quantity"] for answer in grants)
        refused += not grants and any(_is_out_of_stock(answer) for answer in contents)
        unanswered += not contents
        findings += _answer_findings(attempt, contents, product)
    findings += _duplicate_findings([attempt.request_id for attempt in attempts], "request id")
    findings += _duplicate_findings([attempt.user_id for attempt in attempts], "shopper")

    due = min(units, len(attempts))
    if held > units:
        findings.insert(0, Finding(FindingKind.OVERSOLD, f"{held} units held, but only {units} in stock"))
    if held < due:
        findings.append(Finding(FindingKind.UNDERSOLD, f"{held} units held, expected {due}"))
    if available != units - held:
        findings.append(
            Finding(FindingKind.WRONG_STOCK, f"the shop shows {available} available, expected {units - held}")
        )
    return RushVerdict(name, units, len(attempts), held, refused, unanswered, repeats, tuple(findings))


def _answer_findings(attempt: Attempt, contents: Sequence[Frame], product: str) -> list[Finding]:
    """Return the findings about the answers to one request."""
    attempt_name = f"{attempt.user_id} {attempt.request_id}"
    if not contents:
        return [Finding(FindingKind.UNANSWERED, f"{attempt_name}: no answer")]
    findings = []
    if len(contents) > 1:
        types = " and ".join(str(answer["type"]) for answer in contents)
        findings.append(Finding(FindingKind.CONTRADICTED, f"{attempt_name}: contradictory answers {types}"))
    if len(attempt.answers) < attempt.due:
        findings.append(
            Finding(
                FindingKind.REPEAT_UNANSWERED,
                f"{attempt_name}: sent {attempt.due} times, answered {len(attempt.answers)} times",
            )
        )
    findings += [
        Finding(FindingKind.WRONG_ANSWER, f"{attempt_name}: {dict(answer)}")
        for answer in contents
        if not _is_right(answer, product)
    ]
    return findings


def _is_right(answer: Frame, product: str) -> bool:
    if answer.get("product") != product:
        return False
    if answer["type"] == "held":
        return bool(answer["quantity"] == 1 and answer["line_quantity"] == 1)
    return _is_out_of_stock(answer)


def _is_out_of_stock(answer: Frame) -> bool:
    return bool(answer["type"] == "refused" and answer["reason"] == "out_of_stock")


def _distinct(answers: Sequence[Frame]) -> list[Frame]:
    """Return the answers without repetitions, in order of arrival."""
    contents: list[Frame] = []
    for answer in answers:
        content = {name: value for name, value in answer.items() if name not in NON_CONTENT_FIELDS}
        if content not in contents:
            contents.append(content)
    return contents


def _duplicate_findings(ids: Sequence[str], label: str) -> list[Finding]:
    """Return a finding if ids repeat: a proof whose buyers share an id would count one of them twice."""
    return (
        [Finding(FindingKind.SHARED_ID, f"{len(ids) - len(set(ids))} of the attempts share a {label}")]
        if len(set(ids)) < len(ids)
        else []
    )
