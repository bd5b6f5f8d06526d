"""Print verdicts as a table."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from load.verdict import Finding, RushVerdict

SHOWN_FINDINGS: Final = 12


def print_verdicts(console: Console, verdicts: Sequence[RushVerdict], more: Sequence[Finding] = ()) -> None:
    """Print one row per rush, then the findings."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rush")
    for heading in ("units", "buyers", "held", "refused", "unanswered", "repeated answers"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for verdict in verdicts:
        table.add_row(
            verdict.name,
            *map(
                str,
                (
                    verdict.units,
                    verdict.attempts,
                    verdict.held,
                    verdict.refused,
                    verdict.unanswered,
                    verdict.repeats,
                ),
            ),
            "[green]ok" if verdict.ok else "[red]" + str(verdict.findings[0].kind).replace("_", " "),
        )
    console.print(table)
    findings = [*(finding for verdict in verdicts for finding in verdict.findings), *more]
    for finding in findings[:SHOWN_FINDINGS]:
        console.print(f"  {finding.kind}: {finding.detail}", style="red", markup=False, highlight=False)
    if len(findings) > SHOWN_FINDINGS:
        console.print(f"  … and {len(findings) - SHOWN_FINDINGS} more")
