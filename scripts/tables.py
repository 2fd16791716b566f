"""Tables for people: evaluations, language measures, probes. No colours, so they suit any terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from trainers.evaluation import Comparison, Evaluation
from trainers.language import LanguageMeasures
from trainers.statistics import Estimate

BAR = 10  # characters for an emotion of 100
NOTHING = "-"


@dataclass(frozen=True)
class ProbeResult:
    """What one probing policy reached over the cards; ``kind`` tells the reference supporters from the probes."""

    name: str
    kind: str
    evaluation: Evaluation


def evaluation_table(
    evaluations: Mapping[str, Evaluation], difference: Comparison | None = None, trained_with: str | None = None
) -> Table:
    """One column for each named evaluation, and one for the paired difference; each cell is a mean and its interval.

    ``trained_with``: the client spec of the training, where it is known.
    """
    shown = list(evaluations.values())
    first, sources = shown[0], [*shown, *([difference] if difference else [])]
    table = _table(
        f"{first.dialogues} dialogues: {first.cards} cards × {len(first.settings.seeds)} seeds\n"
        f"{_clients(first.spec, trained_with)}\n"
        "mean and 95 % interval over cards"
    )
    _columns(table, [*evaluations, *(["difference"] if difference else [])])

    def row(label: str, pick: Callable[[Evaluation | Comparison], Estimate | None], scale: float = 1) -> None:
        _add(table, label, [_cells(pick(source), scale, signed=source is difference) for source in sources])

    row("final emotion, 0 - 100", lambda source: source.mean_final_emotion)
    row("success, %", lambda source: source.success_rate, 100)
    row("failure, %", lambda source: source.failure_rate, 100)
    row("turns", lambda source: source.turns)
    _add(table, "broken off", [(str(one.errors), "") for one in shown])
    if any(one.retest for one in shown):
        retests = [one.retest and one.retest.mean_difference for one in shown]
        _add(table, "retest, points apart", [(NOTHING if mean is None else f"{mean:.1f}", "") for mean in retests])
    for title, part in (("by hidden need", "by_need"), ("by temperament", "by_temperament")):
        table.add_section()
        table.add_row(Text(f"emotion {title}", style="italic"))
        for group in getattr(first, part):
            row(group.replace("_", " "), lambda source, part=part, group=group: getattr(source, part).get(group))
    return table


def _clients(evaluated_with: str, trained_with: str | None) -> str:
    """Which client was talked with, and whether training knew it."""
    if trained_with in (None, evaluated_with):
        return f"client {evaluated_with}" + (", as in training" if trained_with else "")
    return f"client {evaluated_with}; training had {trained_with}"


def language_table(measures: Mapping[str, LanguageMeasures]) -> Table:
    """Whether each supporter still speaks: one column for each named set of replies."""
    table, shown = _table("How it speaks\nmean and 95 % interval over cards"), list(measures.values())
    _columns(table, list(measures))

    def row(label: str, pick: Callable[[LanguageMeasures], Estimate | None], scale: float = 1, digits: int = 1) -> None:
        _add(table, label, [_cells(pick(one), scale, digits) for one in shown])

    _add(table, "replies", [(str(one.replies), "") for one in shown])
    row("garbled, %", lambda one: one.garbled, 100)
    row("repeated sentences, %", lambda one: one.repeated, 100)
    row("words per reply", lambda one: one.words)
    row("perplexity", lambda one: one.perplexity, digits=2)
    _add(table, "distinct-2", [(NOTHING if one.distinct_2 is None else f"{one.distinct_2:.2f}", "") for one in shown])
    table.add_section()
    table.add_row(Text("replies with an act, %", style="italic"))
    for act in shown[0].acts:
        if any(one.acts[act].mean for one in shown):
            row(act.value.replace("_", " "), lambda one, act=act: one.acts[act], 100)
    return table


def probe_table(results: Sequence[ProbeResult], client: str) -> Table:
    """Policies from the highest mean final emotion down, with a bar each."""
    table = _table(f"What cheap policies reach with client {client} (final emotion 0-100)")
    table.add_column("policy", overflow="fold")
    for heading in ("mean", "95 % interval", "success", "failure", "talks"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("0 - 100", no_wrap=True, width=BAR)
    for kind in dict.fromkeys(result.kind for result in results):
        table.add_section()
        same = [result for result in results if result.kind == kind]
        for result in sorted(same, key=lambda result: -(result.evaluation.mean_final_emotion.mean or 0)):
            table.add_row(result.name, *_probe_cells(result.evaluation))
    return table


def _probe_cells(evaluation: Evaluation) -> list[str]:
    final = evaluation.mean_final_emotion
    means = (evaluation.success_rate.mean, evaluation.failure_rate.mean)
    rates = [NOTHING if mean is None else f"{mean:.0%}" for mean in means]
    interval = NOTHING if final.ci95 is None else f"{final.ci95[0]:.1f} to {final.ci95[1]:.1f}"
    mean = NOTHING if final.mean is None else f"{final.mean:.1f}"
    bar = "█" * round((final.mean or 0) / 100 * BAR)
    return [mean, interval, *rates, str(evaluation.dialogues), bar]


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.HORIZONTALS,
        show_edge=False,
        collapse_padding=True,
        pad_edge=False,
    )


def _columns(table: Table, names: Sequence[str]) -> None:
    """A column of labels, then for each name one of means and one of intervals."""
    table.add_column("", overflow="fold")
    for name in names:
        table.add_column("", justify="right", no_wrap=True)
        table.add_column(name, justify="right", no_wrap=True)


def _add(table: Table, label: str, cells: Sequence[tuple[str, str]]) -> None:
    table.add_row(label, *(text for pair in cells for text in pair))


def _cells(estimate: Estimate | None, scale: float, digits: int = 1, signed: bool = False) -> tuple[str, str]:
    """A mean and its interval, as "56.2" and "51.0, 61.2"."""
    if estimate is None or estimate.mean is None:
        return NOTHING, ""
    mean = f"{estimate.mean * scale:{'+' if signed else ''}.{digits}f}"
    return mean, ", ".join(f"{end * scale:.{digits}f}" for end in estimate.ci95 or ())
