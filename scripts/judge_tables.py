"""A judge's certificate as a table and notes for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from rewards.certificate import Certificate
from rewards.certify import AxisReport, Coefficient

NOTHING = "-"


def certificate_table(found: Certificate) -> Table:
    """One row for each axis: agreement over responders and over single responses, pairs, bias, verdict."""
    table = Table(
        title=f"{found.judge.name} against people: {found.used:,} responses, {found.conversations:,} conversations, "
        f"{len(found.responders)} responders\n95 % intervals over responders, at item level over responses",
        title_justify="left",
        title_style="bold",
        box=box.HORIZONTALS,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("axis", no_wrap=True)
    columns = ("ICC(C,1)", "ICC(A,1)", "item C,1", "item A,1", "ties %", "inverted %", "bias", "at top %")
    for name in (*columns, "verdict", "reward"):
        table.add_column(name, justify="right", no_wrap=True)
    for axis in found.axes:
        table.add_row(axis.axis, *_cells(axis))
    return table


def _cells(axis: AxisReport) -> list[str]:
    inflation = axis.inflation
    return [
        _coefficient(axis.icc_c1),
        _coefficient(axis.icc_a1),
        _coefficient(axis.item.icc_c1),
        _coefficient(axis.item.icc_a1),
        _percent(axis.ties),
        _percent(axis.inversions),
        f"{axis.bias:+.2f}",
        f"{inflation.judge_at_top * 100:.0f}/{inflation.human_at_top * 100:.0f}",
        axis.verdict or NOTHING,
        "passes" if axis.passes else "refused",
    ]


def _coefficient(found: Coefficient) -> str:
    if found.value is None:
        return NOTHING
    ends = "" if found.ci95 is None else "\n" + ", ".join(f"{end:.2f}" for end in found.ci95)
    return f"{found.value:.3f}{ends}"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share * 100:.1f}"


def full_width(table: Table, console: Console) -> int:
    """How many characters a table needs: a narrower terminal wraps its lines, and no figure is cut."""
    return console.measure(table, options=console.options.update(max_width=1000)).maximum


def certificate_notes(found: Certificate, ignored: Sequence[str]) -> Iterator[str]:
    """What was left out, and why axes are refused."""
    if found.excluded:
        yield f"left out as the judge's own: {', '.join(found.excluded)} ({found.own_responses:,} responses)"
    else:
        yield "no responder is left out; name the judge's own with --exclude"
    if found.incomplete:
        yield f"left out, not rated by both on every axis: {found.incomplete:,} of {found.responses:,} responses"
    if found.unmatched:
        yield f"rated in one file only: {found.unmatched:,} responses"
    if ignored:
        yield f"columns that are no axes: {', '.join(ignored)}"
    if found.beyond_judge and found.settings.low is None:
        yield (
            f"people's ratings go beyond the judge's range in {found.beyond_judge:,} responses; "
            "if they are off the scale, --scale LOW:HIGH leaves them out"
        )
    for axis in found.axes:
        if not axis.passes:
            yield f"{axis.axis} is refused: {'; '.join(axis.refused_for)}"
