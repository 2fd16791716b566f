"""A sweep as a picture: learning curves on the left, held-out gains on the right; light and dark, SVG and PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.statistics import Estimate
from trainers.sweep_numbers import WINDOW
from trainers.sweep_report import ArmResult, SweepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIGHT, DARK = "sweep", "sweep-dark"
# Told apart with any colour vision (Okabe and Ito), beside line style and marker; the darker and the lighter ones read
# on their own background.
PALETTES = {
    LIGHT: ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#8C6D00", "#333333"),
    DARK: ("#56B4E9", "#E69F00", "#2FBF93", "#E08DB9", "#F0E442", "#DDDDDD"),
}
INKS = {LIGHT: ("#1a1a1a", "#ffffff", "#d9d9d9"), DARK: ("#e6e6e6", "#0d1117", "#30363d")}  # text, ground, grid
LINES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "D", "^", "v", "P")


def draw(report: SweepReport, out: Path) -> list[Path]:
    """Write sweep.svg, sweep.png and their dark twins, and return their paths. The same report gives the same files."""
    import matplotlib

    written = []
    for name in (LIGHT, DARK):
        with matplotlib.rc_context(plot_style(name)):
            figure = _figure(report, name)
            for suffix in (".svg", ".png"):
                path = out / f"{name}{suffix}"
                # Neither date nor version, so that a file depends on its report alone.
                figure.savefig(
                    path, metadata={"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
                )
                written.append(path)
    return written


def plot_style(name: str) -> Any:
    """Matplotlib settings of the light or the dark look."""
    ink, ground, grid = INKS[name]
    return {
        "svg.hashsalt": "attune", "savefig.dpi": 160, "font.size": 10, "font.family": "DejaVu Sans",
        "figure.facecolor": ground, "axes.facecolor": ground, "savefig.facecolor": ground,
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink,
        "grid.color": grid, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
        "axes.spines.right": False,
    }  # fmt: skip


def _figure(report: SweepReport, name: str) -> Figure:
    from matplotlib.figure import Figure

    count = len(report.arms)
    figure = Figure(figsize=(10.5, max(4.4, 2.4 + 0.62 * count)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for place, arm in enumerate(report.arms):
        looks = {"color": PALETTES[name][place % len(PALETTES[name])]}
        _curves(left, arm, place, looks)
        _gains(right, arm, place, looks)
    left.set_xlabel("Training dialogues")
    left.set_ylabel(f"Final emotion of training dialogues, 0–100\n(trailing mean of {WINDOW} steps)")
    left.set_xlim(left=0)
    left.set_ylim(bottom=0)
    if left.get_legend_handles_labels()[0]:
        left.legend(
            frameon=False,
            loc="lower right",
            title="mean over seeds (thin: each seed)",
            title_fontsize=9,
            handlelength=3.4,
        )
    right.set_yticks(range(count), [arm.name for arm in report.arms])
    right.set_ylim(count - 0.4, -0.6)
    right.grid(axis="y", visible=False)
    right.axvline(0, color=INKS[name][0], linewidth=0.8)
    right.set_xlabel("Gain in final emotion on held-out cards,\ntuned less base, points")
    figure.supxlabel(_caption(report), fontsize=8.5, x=0.01, ha="left")
    return figure


def _curves(axes: Axes, arm: ArmResult, place: int, looks: dict[str, Any]) -> None:
    done = [cell for cell in arm.cells if cell.problem is None]
    if not done:
        return
    steps = np.array(done[0].dialogues)
    curves = np.array([cell.smoothed for cell in done], dtype=float)
    for curve in curves:
        axes.plot(steps, curve, linewidth=0.8, alpha=0.45, **looks)
    line = LINES[place % len(LINES)]
    axes.plot(steps, curves.mean(0), line, linewidth=2.4, label=arm.name, **looks)


def _gains(axes: Axes, arm: ArmResult, place: int, looks: dict[str, Any]) -> None:
    marker = MARKERS[place % len(MARKERS)]
    if arm.gain and arm.gain.mean is not None:
        axes.errorbar(
            arm.gain.mean, place, xerr=_arms(arm.gain), fmt=marker, markersize=9, capsize=5, linewidth=2.4, **looks
        )
        told = f"{arm.gain.mean:+.1f}"
        axes.annotate(told, (arm.gain.mean, place), (0, 9), textcoords="offset points", ha="center", **looks)
    done = [cell.gain for cell in arm.cells if cell.gain and cell.gain.mean is not None]
    for number, gain in enumerate(done):
        height = place + 0.2 + 0.3 * (number + 1) / (len(done) + 1)
        axes.errorbar(
            gain.mean or 0, height, xerr=_arms(gain), fmt="o", markersize=4, linewidth=0.9, alpha=0.75,
            markerfacecolor="none", **looks,
        )  # fmt: skip


def _arms(estimate: Estimate) -> list[list[float]] | None:
    """How far the interval reaches down and up from the mean, (2, 1)."""
    if estimate.ci95 is None or estimate.mean is None:
        return None
    return [[estimate.mean - estimate.ci95[0]], [estimate.ci95[1] - estimate.mean]]


def _caption(report: SweepReport) -> str:
    runs = ", ".join(f"{arm.name} {sum(c.problem is None for c in arm.cells)}" for arm in report.arms)
    return (
        f"Runs: {runs}. Held-out dialogues of each run: {report.cards or 0} cards × {report.seeds_per_card or 0}. "
        "Right: bold, seeds pooled; small, each seed.\n"
        "Bars: 95 % bootstrap intervals over cards; they don't cover the choice of training seeds."
    )
