"""The benchmark as pictures: turns/s of each variant, and, where measured, by dialogues in flight; light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmark_parts.report import turns_per_second
from scripts.benchmark_parts.work import spread
from scripts.sweep_plot import PALETTES, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"sweep": "benchmark", "sweep-dark": "benchmark-dark"}


def draw(report: dict[str, Any], out: Path) -> list[Path]:
    """Write benchmark.svg and benchmark-dark.svg and return their paths. The same report gives the same files."""
    import matplotlib

    written = []
    for look, name in NAMES.items():
        with matplotlib.rc_context(plot_style(look)):
            path = out / f"{name}.svg"
            _figure(report, PALETTES[look]).savefig(path, metadata={"Date": None, "Creator": None})
            written.append(path)
    return written


def _figure(report: dict[str, Any], palette: tuple[str, ...]) -> Figure:
    from matplotlib.figure import Figure

    scaling = report.get("scaling")
    figure = Figure(figsize=(10.5 if scaling else 7.5, 4.4), layout="constrained")
    if not scaling:
        _bars(figure.subplots(), report.get("rollouts") or [], palette)
        return figure
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _bars(left, report.get("rollouts") or [], palette)
    _scaling(right, scaling, palette)
    return figure


def _bars(axes: Axes, rows: list[dict[str, Any]], palette: tuple[str, ...]) -> None:
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    sizes = sorted({row["size"] for row in rows})
    height = 0.8 / max(len(sizes), 1)
    for place, size in enumerate(sizes):
        for line, variant in enumerate(variants):
            mine = [row for row in rows if (row["variant"], row["size"], row["latency"]) == (variant, size, True)]
            rate = spread([turns_per_second(row) for row in mine])
            if rate is None:
                continue
            at, middle = line + (place - (len(sizes) - 1) / 2) * height, rate["median"]
            arms = [[middle - rate["low"]], [rate["high"] - middle]]
            label = f"{size} dialogues at once" if line == 0 else None
            axes.barh(at, middle, height * 0.92, color=palette[place], label=label)
            axes.errorbar(middle, at, xerr=arms, fmt="none", capsize=3, linewidth=1.2, ecolor=palette[-1])
            axes.annotate(f"{middle:.1f}", (rate["high"], at), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(variants)), variants)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Turns a second, clients answering after 0.2 s in the mean (99th percentile 1 s)")
    if sizes:
        axes.legend(frameon=False, loc="lower right")


def _scaling(axes: Axes, rows: list[dict[str, Any]], palette: tuple[str, ...]) -> None:
    counts = [row["in_flight"] for row in rows]
    axes.plot(counts, [turns_per_second(row) for row in rows], "o-", linewidth=2.2, color=palette[0])
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Dialogues in flight (ours)")
    axes.set_ylabel("Turns a second")
