"""What the commands print: findings and numbers in the form people read them."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from albert.cloud.findings import Finding
from btard.harness.tables import table

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "stop": "[red]stop[/]"}


def finding_line(finding: Finding) -> str:
    """Return a finding as a line."""
    advice = f"; {escape(finding.advice)}" if finding.advice else ""
    return f"{MARKS[finding.level]} {escape(finding.topic)}: {escape(finding.found)}{advice}"


def findings_table(findings: Iterable[Finding]) -> Table:
    """Return findings as a table: what was checked, the result, what to do."""
    rows = ([MARKS[f.level], escape(f.topic), escape(f.found), escape(f.advice)] for f in findings)
    return table("Before a launch", ("", "what", "found", "what to do"), rows, markup=True)


def dollars(amount: float) -> str:
    """Return an amount of money; cents matter below a hundred dollars."""
    return f"{amount:,.4f}" if amount < 1 else f"{amount:,.2f}" if amount < 100 else f"{amount:,.0f}"


def span(low: float, high: float) -> str:
    """Return a range of money, one amount if both ends read the same."""
    return dollars(low) if dollars(low) == dollars(high) else f"{dollars(low)} to {dollars(high)}"


def ago(seconds: float) -> str:
    """Return how long ago something was."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
