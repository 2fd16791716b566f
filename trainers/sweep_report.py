"""What a sweep's finished cells amount to: gains of each arm, differences between arms, dialogues that they needed.

A pure function of the grid and of the cells' records, so that ``attune sweep --report`` makes the same file again.

Intervals are those of ``trainers.statistics``: 95 % bootstrap over held-out cards, a card with all its dialogues of all
training seeds as one cluster. They cover the choice of cards, given the training seeds that were run. They don't cover
the choice of training seeds: these are few, so each seed's own result, with its own interval, stands beside the pooled.
Differences are paired by training seed, card and evaluation seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.receipts import read_log
from envs.trajectory import Record
from trainers.evaluation import SUMMARY as EVALUATION
from trainers.evaluation import TRAJECTORIES, Evaluation
from trainers.language import LANGUAGE, LanguageMeasures
from trainers.manifest import Problem, check_files, read_manifest, write_json
from trainers.run_files import METRICS
from trainers.run_folder import is_finished
from trainers.statistics import Estimate, Resampling, differences, estimate_mean
from trainers.sweep import GRID, Grid, Pair, cell_name, load_grid
from trainers.sweep_numbers import Curve, Reach, curve_of, reach, reach_with_interval, smoothed

REPORT = "sweep.json"
COMMAND = "$ "  # begins the line of a cell's log that says what was started
ERROR = "error: "
Key = tuple[str, int]  # card and evaluation seed


class CellResult(Record):
    """One run. ``problem`` says why there are no results. ``seconds``: the whole run's wall clock, None where it was
    resumed; ``training_seconds``: its steps alone. ``curve`` (steps,): mean final emotion, None where none is known."""

    seed: int
    problem: str | None = None
    base: Estimate | None = None
    tuned: Estimate | None = None
    gain: Estimate | None = None
    garbled: float | None = None
    perplexity: float | None = None
    training_dialogues: int | None = None
    seconds: float | None = None
    training_seconds: float | None = None
    dialogues: tuple[int, ...] = ()
    curve: tuple[float | None, ...] = ()
    smoothed: tuple[float | None, ...] = ()


class ArmResult(Record):
    """One arm over its finished seeds; numbers without an interval are means over these."""

    name: str
    keys: dict[str, Any]
    cells: tuple[CellResult, ...]
    base: Estimate | None
    tuned: Estimate | None
    gain: Estimate | None
    garbled: float | None
    perplexity: float | None
    training_dialogues: float | None
    seconds: float | None
    training_seconds: float | None


class SeedPair(Record):
    """Two arms with the same training seed."""

    seed: int
    difference: Estimate
    reach: Reach


class PairResult(Record):
    """``arm`` less ``other`` in held-out final emotion, over the seeds that both have finished, and the dialogues that
    ``arm`` needed. ``dialogues_share``: all its training dialogues over all of the other's."""

    arm: str
    other: str
    difference: Estimate | None
    dialogues_share: float | None
    reach: Reach | None
    seeds: tuple[SeedPair, ...]


class SweepReport(Record):
    """A whole sweep. ``cards`` and ``seeds_per_card`` are the held-out ones of every cell."""

    base: str | None
    seeds: tuple[int, ...]
    cards: int | None
    seeds_per_card: int | None
    arms: tuple[ArmResult, ...]
    pairs: tuple[PairResult, ...]

    @property
    def problems(self) -> dict[str, str]:
        """Why a cell has no results, by its name."""
        found = {cell_name(arm.name, cell.seed): cell.problem for arm in self.arms for cell in arm.cells}
        return {name: problem for name, problem in found.items() if problem}


@dataclass(frozen=True)
class _Run:
    """What was read of a cell: its result, and what the pooled numbers need."""

    result: CellResult
    curve: Curve | None = None
    base: dict[Key, float | None] = field(default_factory=dict)
    tuned: dict[Key, float | None] = field(default_factory=dict)
    resampling: Resampling = field(default_factory=Resampling)


def report_sweep(out: Path) -> SweepReport:
    """The report of a sweep's folder. Raises InputError when it is none, or its cells played different dialogues."""
    if not (out / GRID).is_file():
        raise InputError(f"{out}: has no {GRID}, so it is no sweep's folder; name the --out of a sweep")
    grid = load_grid(out / GRID)
    runs = {(arm.name, seed): _read(out, arm.name, seed) for arm in grid.arms for seed in grid.seeds}
    keys = {frozenset(run.tuned) for run in runs.values() if run.tuned}
    if len(keys) > 1:
        raise InputError(f"{out}: its cells were evaluated on different dialogues, so they can't be compared")
    played = next(iter(keys), frozenset())
    cards = len({card for card, _ in played})
    return SweepReport(
        base=str(grid.base) if grid.base else None,
        seeds=tuple(grid.seeds),
        cards=cards or None,
        seeds_per_card=len({seed for _, seed in played}) or None,
        arms=tuple(_arm(arm.name, arm.keys, [runs[arm.name, seed] for seed in grid.seeds]) for arm in grid.arms),
        pairs=tuple(_pair(pair, grid, runs) for pair in grid.compare or []),
    )


def write_report(out: Path, report: SweepReport) -> None:
    """Write sweep.json."""
    write_json(out / REPORT, report.model_dump(mode="json"))


def problem_of(folder: Path, log: Path) -> str | None:
    """Why a cell's folder can't be counted; None for a finished run, whole as its manifest says, and verified."""
    if not is_finished(folder):
        return _last_error(log) or ("unfinished" if folder.exists() else "not run")
    try:
        check_files(folder, read_manifest(folder))
    except Problem as problem:
        return str(problem)
    verified = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("verified")
    return None if verified else "its record did not verify; attune verify tells where"


def log_of(out: Path, name: str) -> Path:
    """The log of a cell."""
    return out / f"{name}.log"


def _last_error(log: Path) -> str | None:
    """The error that the last start of a cell ended with, if it did."""
    if not log.exists():
        return None
    error = None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(COMMAND):
            error = None
        elif line.startswith(ERROR):
            error = line.removeprefix(ERROR)
    return error


def _read(out: Path, arm: str, seed: int) -> _Run:
    name = cell_name(arm, seed)
    folder = out / name
    if problem := problem_of(folder, log_of(out, name)):
        return _Run(CellResult(seed=seed, problem=problem))
    base, tuned = (_evaluation(folder, side) for side in ("base", "tuned"))
    finals = [{(o.card_id, o.seed): o.final_emotion for o in side.outcomes} for side in (base, tuned)]
    resampling = tuned.settings.resampling
    language = LanguageMeasures.model_validate_json(_text(folder / "evaluation" / "tuned" / LANGUAGE))
    curve = curve_of(line.trajectory for line in read_log(folder / TRAJECTORIES))
    lines = [json.loads(line) for line in _text(folder / METRICS).splitlines()]
    resumed = "resumed" in json.loads(_text(folder / "provenance.json"))
    result = CellResult(
        seed=seed,
        base=_over_cards(finals[0], resampling),
        tuned=_over_cards(finals[1], resampling),
        gain=_over_cards(_differences(*finals), resampling),
        garbled=language.garbled.mean,
        perplexity=language.perplexity.mean if language.perplexity else None,
        training_dialogues=int(curve.dialogues[-1]),
        seconds=None if resumed else json.loads(_text(folder / "summary.json"))["seconds"],
        training_seconds=round(sum(sum(line.get("seconds", {}).values()) for line in lines), 1),
        dialogues=tuple(map(int, curve.dialogues)),
        curve=_shown(curve.means),
        smoothed=_shown(smoothed(curve.means)),
    )
    return _Run(result, curve, finals[0], finals[1], resampling)


def _evaluation(folder: Path, side: str) -> Evaluation:
    return Evaluation.model_validate_json(_text(folder / "evaluation" / side / EVALUATION))


def _arm(name: str, keys: dict[str, Any], runs: Sequence[_Run]) -> ArmResult:
    done = [run for run in runs if run.curve]
    cells = [run.result for run in done]
    return ArmResult(
        name=name,
        keys=keys,
        cells=tuple(run.result for run in runs),
        base=_pooled([run.base for run in done], done),
        tuned=_pooled([run.tuned for run in done], done),
        gain=_pooled([_differences(run.base, run.tuned) for run in done], done),
        **{
            number: _mean([getattr(cell, number) for cell in cells])
            for number in ("garbled", "perplexity", "training_dialogues", "seconds", "training_seconds")
        },
    )


def _pair(pair: Pair, grid: Grid, runs: dict[tuple[str, int], _Run]) -> PairResult:
    sides = [(seed, runs[pair.arm, seed], runs[pair.other, seed]) for seed in grid.seeds]
    both = [(seed, ours, theirs) for seed, ours, theirs in sides if ours.curve and theirs.curve]
    curves = [[run.curve for run in side if run.curve] for side in ([s[1] for s in both], [s[2] for s in both])]
    apart = [_differences(theirs.tuned, ours.tuned) for _, ours, theirs in both]
    found = None
    if both:
        found = reach_with_interval(curves[0], curves[1], pair.within, both[0][1].resampling)
    return PairResult(
        arm=pair.arm,
        other=pair.other,
        difference=_pooled(apart, [ours for _, ours, _ in both]),
        dialogues_share=_share(curves[0], curves[1]) if both else None,
        reach=found,
        seeds=tuple(
            SeedPair(
                seed=seed,
                difference=_over_cards(_differences(theirs.tuned, ours.tuned), ours.resampling),
                reach=reach([ours.curve], [theirs.curve], pair.within),
            )
            for seed, ours, theirs in both
            if ours.curve and theirs.curve
        ),
    )


def _pooled(values: Sequence[dict[Key, float | None]], runs: Sequence[_Run]) -> Estimate | None:
    """The mean over cards of each card's mean over evaluation and training seeds; None without a run."""
    if not runs:
        return None
    pairs = [(card, value) for one in values for (card, _), value in one.items()]
    return estimate_mean([value for _, value in pairs], [card for card, _ in pairs], runs[0].resampling)


def _over_cards(values: dict[Key, float | None], resampling: Resampling) -> Estimate:
    return estimate_mean(list(values.values()), [card for card, _ in values], resampling)


def _differences(before: dict[Key, float | None], after: dict[Key, float | None]) -> dict[Key, float | None]:
    keys = sorted(before)
    apart = differences([before[key] for key in keys], [after[key] for key in keys])
    return dict(zip(keys, apart, strict=True))


def _share(ours: Sequence[Curve], theirs: Sequence[Curve]) -> float:
    """Training dialogues of one arm over those of another."""
    return round(sum(c.dialogues[-1] for c in ours) / sum(c.dialogues[-1] for c in theirs), 6)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 6) if known else None


def _shown(values: Any) -> tuple[float | None, ...]:
    return tuple(None if value != value else round(float(value), 6) for value in values)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
