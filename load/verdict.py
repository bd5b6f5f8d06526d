"""Whether a crowd of buyers was served right: each answered once, no unit given twice, none lost.

Pure, and used for the real shop and for the one with the classic bug alike: a verdict that no shop can fail would
prove nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from load.protocol import Frame

NOT_CONTENT: Final = frozenset({"replayed", "traceparent"})
"""What may differ between two answers to the same request."""


class Kind(StrEnum):
    """What can be wrong."""

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
    """One thing that is wrong."""

    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One buyer's request for one unit and every terminal answer it got, in the order of arrival."""

    user_id: str
    request_id: str
    answers: tuple[Frame, ...]
    due: int = 1
    """How many answers there must be at least: 2 when the frame was said again after its first answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of `attempts` requests for one unit each, when `units` were to be had."""

    name: str
    units: int
    attempts: int
    held: int
    """Units that buyers were told are theirs; two different grants for one request count twice."""
    refused: int
    unanswered: int
    repeats: int
    """Answers beyond the first of a request, all equal to it unless a finding says otherwise."""
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.findings

    def found(self, kind: Kind) -> bool:
        """Whether this is among what is wrong."""
        return any(finding.kind is kind for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
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


def judge(
    name: str,
    attempts: Sequence[Attempt],
    *,
    product: str,
    units: int,
    available: int | None,
    others: Sequence[Finding] = (),
) -> Verdict:
    """The verdict on one rush for `product`.

    `available` is what the catalogue shows afterwards, none when it was not asked or has no such product; `others`
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
        findings += _faults(attempt, contents, product)
    findings += _shared([attempt.request_id for attempt in attempts], "request id")
    findings += _shared([attempt.user_id for attempt in attempts], "shopper")

    due = min(units, len(attempts))
    if held > units:
        findings.insert(0, Finding(Kind.OVERSOLD, f"{held} units held, {units} there were"))
    if held < due:
        findings.append(Finding(Kind.UNDERSOLD, f"{held} units held, {due} should be"))
    if available != units - held:
        findings.append(Finding(Kind.WRONG_STOCK, f"the shop shows {available} available, {units - held} are left"))
    return Verdict(name, units, len(attempts), held, refused, unanswered, repeats, tuple(findings))


def _faults(attempt: Attempt, contents: Sequence[Frame], product: str) -> list[Finding]:
    """What is wrong with the answers to one request."""
    who = f"{attempt.user_id} {attempt.request_id}"
    if not contents:
        return [Finding(Kind.UNANSWERED, f"{who}: no answer")]
    findings = []
    if len(contents) > 1:
        told = " and ".join(str(answer["type"]) for answer in contents)
        findings.append(Finding(Kind.CONTRADICTED, f"{who}: answered {told}, which are not equal"))
    if len(attempt.answers) < attempt.due:
        findings.append(
            Finding(Kind.REPEAT_UNANSWERED, f"{who}: said {attempt.due} times, answered {len(attempt.answers)}")
        )
    findings += [
        Finding(Kind.WRONG_ANSWER, f"{who}: {dict(answer)}") for answer in contents if not _is_right(answer, product)
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
    """The answers without repetitions, in the order of arrival."""
    contents: list[Frame] = []
    for answer in answers:
        content = {name: value for name, value in answer.items() if name not in NOT_CONTENT}
        if content not in contents:
            contents.append(content)
    return contents


def _shared(ids: Sequence[str], what: str) -> list[Finding]:
    """A proof whose buyers share an id would count one of them twice."""
    return (
        [Finding(Kind.SHARED_ID, f"{len(ids) - len(set(ids))} of the attempts share a {what}")]
        if len(set(ids)) < len(ids)
        else []
    )
