"""A sweep as a table for people and as Markdown: the same cells in both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich import box
from rich.table import Table
from rich.text import Text

from trainers.statistics import Estimate
from trainers.sweep_numbers import WINDOW, Reach
from trainers.sweep_report import ArmResult, CellResult, SweepReport

NOTHING = "-"
ARMS = ("training dialogues", "base", "tuned", "gain", "garbled, %", "minutes (training)")
PAIRS = ("dialogues, %", "final emotion", "level", "reached after, %", "in time, %")
Row = tuple[str, ...]


def arm_rows(report: SweepReport) -> list[Row]:
    """A row for each arm, and below it one for each of its seeds: a label, then what ``ARMS`` says."""
    rows = []
    for arm in report.arms:
        done = sum(cell.problem is None for cell in arm.cells)
        rows.append((f"{arm.name} ({done} of {len(arm.cells)})", *_numbers(arm)))
        for cell in arm.cells:
            shown = _numbers(cell) if cell.problem is None else (NOTHING,) * len(ARMS)
            rows.append((f"  seed {cell.seed}" + ("" if cell.problem is None else ", failed"), *shown))
    return rows


def pair_rows(report: SweepReport) -> list[Row]:
    """A row for each pair of arms, and below it one for each seed: a label, then what ``PAIRS`` says."""
    rows = []
    for pair in report.pairs:
        label = f"{pair.arm} less {pair.other}"
        rows.append((label, _percent(pair.dialogues_share), _interval(pair.difference, True), *_reach(pair.reach)))
        for one in pair.seeds:
            rows.append((f"  seed {one.seed}", "", _interval(one.difference, True), *_reach(one.reach)))
    return rows


def caption(report: SweepReport) -> list[str]:
    """What the numbers rest on, one sentence each."""
    played = (
        f"{report.cards} held-out cards × {report.seeds_per_card} dialogues" if report.cards else "nothing finished"
    )
    return [
        f"Final emotion, 0-100: {played} a run; after an arm's name: how many of its seeds are finished.",
        "Gain: tuned less base, paired. In brackets: 95 % intervals over cards, all seeds of a card as one cluster; "
        "they don't cover the choice of training seeds.",
        "Garbled replies of the tuned policy, and minutes of a run and of its training: means over the seeds.",
    ]


def pair_caption(report: SweepReport) -> list[str]:
    """What the comparison of arms says, one sentence each."""
    times = sorted({f"{pair.reach.within * 100:g} %" for pair in report.pairs if pair.reach})
    return [
        "Dialogues: the first arm's training dialogues over the second's.",
        "Final emotion: the first arm's tuned policy less the second's, on the same held-out dialogues with the same "
        "training seed.",
        f"Level: where the second arm's training curve (trailing mean of {WINDOW} steps) ends; reached after: the "
        "share of the second arm's training dialogues with which the first curve is there.",
        "In brackets: 95 % intervals, of the emotion over cards, of the share over seeds and groups.",
        *([f"In time: resamples that are there with at most {' or '.join(times)} of the dialogues."] if times else []),
    ]


def tables(report: SweepReport) -> list[Table]:
    """The arms and, where arms are compared, the pairs."""
    shown = [_table("Arms", ARMS, arm_rows(report), caption(report))]
    if report.pairs:
        shown.append(_table("Arms compared", PAIRS, pair_rows(report), pair_caption(report)))
    return shown


def markdown(report: SweepReport, plots: Sequence[str]) -> str:
    """The sweep as Markdown, ready for a page of the docs. ``plots``: names of the light and the dark picture."""
    light, dark = plots
    parts = [
        _markdown_table("arm", ARMS, arm_rows(report)),
        " ".join(caption(report)),
        *([_markdown_table("arms", PAIRS, pair_rows(report)), " ".join(pair_caption(report))] if report.pairs else []),
        *[f"- `{name}`: {problem}" for name, problem in report.problems.items()],
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="Learning curves, and held-out gains, of each arm" src="{light}"></picture>',
    ]
    return "\n\n".join(parts) + "\n"


def _numbers(one: ArmResult | CellResult) -> Row:
    whole, training = (
        NOTHING if seconds is None else f"{seconds / 60:.1f}" for seconds in (one.seconds, one.training_seconds)
    )
    return (
        NOTHING if one.training_dialogues is None else f"{one.training_dialogues:,.0f}",
        _mean(one.base),
        _mean(one.tuned),
        _interval(one.gain, signed=True),
        NOTHING if one.garbled is None else f"{one.garbled * 100:.1f}",
        NOTHING if one.training_seconds is None else f"{whole} ({training})",
    )


def _reach(found: Reach | None) -> Row:
    if found is None or found.level is None:
        return (NOTHING,) * 3
    share = _share(found.share)
    if found.ci95:
        share += f" [{', '.join(map(_share, found.ci95))}]"
    return f"{found.level:.1f}", share, _percent(found.in_time)


def _share(share: float | None) -> str:
    return "never" if share is None else _percent(share)


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share * 100:.0f}"


def _mean(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None or estimate.mean is None else f"{estimate.mean:.1f}"


def _interval(estimate: Estimate | None, signed: bool = False) -> str:
    """ "+32.2 [27.1, 37.0]", or the mean alone where there is no interval."""
    if estimate is None or estimate.mean is None:
        return NOTHING
    mean = f"{estimate.mean:{'+' if signed else ''}.1f}"
    return mean + (f" [{estimate.ci95[0]:.1f}, {estimate.ci95[1]:.1f}]" if estimate.ci95 else "")


def _table(title: str, headings: Sequence[str], rows: Sequence[Row], notes: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold",
        caption=Text("\n".join(notes)), caption_justify="left", caption_style="",
        box=box.HORIZONTALS, show_edge=False, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.add_column("", overflow="fold")
    for heading in headings:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for row, following in zip_longest(rows, rows[1:], fillvalue=("",)):
        ends = bool(following[0]) and not following[0].startswith(" ")
        table.add_row(*row, end_section=ends)
    return table


def _markdown_table(first: str, headings: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [f"| {first} | {' | '.join(headings)} |", f"|---|{'---:|' * len(headings)}"]
    for label, *cells in rows:
        shown = f"&nbsp;&nbsp;{label.strip()}" if label.startswith(" ") else f"**{label}**"
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)
