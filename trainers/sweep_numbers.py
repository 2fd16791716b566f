"""Learning curves, and how many dialogues one arm needs to reach what another ends with.

Definitions, the same for every sweep:

- A step's value is the mean final emotion (0-100) of its training dialogues that did not fail.
- A curve is smoothed by the trailing mean over ``WINDOW`` = 3 steps; it begins at the third step.
- The level is the last value of the other arm's smoothed curve.
- The share is the number of training dialogues up to and with the first step at which the arm's smoothed curve is at
  the level or above, over all training dialogues of the other arm. Over seeds, the curves are averaged first.
- The interval: seeds are drawn with replacement, the same for both arms, and then the groups of every step of every
  drawn run, each group with all its dialogues; level and share are computed anew from each resample.

What to bear in mind: the first crossing of a noisy curve comes early rather than late, for the arm as well as for any
other, and a resample adds noise of its own; each step meets other cards; seeds are few. A share from training dialogues
is therefore to be read beside the held-out comparison of the two arms, which has none of this.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.errors import InputError
from envs.trajectory import Record, Trajectory
from trainers.statistics import DIGITS, Resampling

WINDOW = 3  # steps
CHUNK = 250  # resamples at once: bounds the memory
PLACE = re.compile(r"(\d+)-(\d+)-")  # step and group, at the head of a training dialogue's id

Array = NDArray[np.float64]


class Curve(NamedTuple):
    """A run's training dialogues: sums of final emotion and counts, (steps, groups) each, failed dialogues left out;
    ``dialogues`` (steps,) counts all of them up to and with each step."""

    sums: Array
    counts: Array
    dialogues: Array

    @property
    def means(self) -> Array:
        """The mean final emotion of each step, (steps,); NaN where no dialogue went through."""
        return _ratio(self.sums.sum(1), self.counts.sum(1))


class Reach(Record):
    """How soon one arm reaches another's last smoothed value ``level`` (0-100). None: not at all, or not measurable.

    ``share`` of the other's dialogues, and its 95 % interval, whose end is None where resamples don't reach it;
    ``reached`` and ``in_time``: the shares of resamples that reach it at all, and with at most ``within``.
    """

    level: float | None
    share: float | None
    ci95: tuple[float | None, float | None] | None = None
    within: float
    reached: float | None = None
    in_time: float | None = None


def curve_of(trajectories: Iterable[Trajectory]) -> Curve:
    """The curve of a run's training dialogues. Raises InputError where an id doesn't say step and group."""
    finals: dict[tuple[int, int], list[float | None]] = defaultdict(list)
    for trajectory in trajectories:
        place = PLACE.match(trajectory.dialogue_id)
        if place is None:
            raise InputError(f"{trajectory.dialogue_id}: is no training dialogue: its id names no step and group")
        finals[int(place[1]), int(place[2])].append(trajectory.final_emotion)
    if not finals:
        raise InputError("a learning curve needs at least one training dialogue")
    steps, groups = (max(key[axis] for key in finals) + 1 for axis in (0, 1))
    sums, counts, dialogues = np.zeros((steps, groups)), np.zeros((steps, groups)), np.zeros(steps)
    for (step, group), values in finals.items():
        known = [value for value in values if value is not None]
        sums[step, group], counts[step, group] = sum(known), len(known)
        dialogues[step] += len(values)
    return Curve(sums, counts, dialogues.cumsum())


def smoothed(means: Array) -> Array:
    """The trailing mean over ``WINDOW`` steps of (..., steps); NaN before there are as many."""
    out = np.full(means.shape, np.nan)
    if means.shape[-1] >= WINDOW:
        windows = np.lib.stride_tricks.sliding_window_view(means, WINDOW, axis=-1)
        out[..., WINDOW - 1 :] = windows.mean(-1)
    return out


def reach(arm: Sequence[Curve], other: Sequence[Curve], within: float) -> Reach:
    """Level and share by the definitions above, without an interval. The curves (seeds,) are averaged first."""
    means, others = (np.stack([one.means for one in side]).mean(0) for side in (arm, other))
    level, share = _level_and_share(means, others, arm, other)
    return Reach(level=_known(float(level)), share=_known(float(share)), within=within)


def reach_with_interval(arm: Sequence[Curve], other: Sequence[Curve], within: float, resampling: Resampling) -> Reach:
    """``reach`` with its interval. ``arm`` and ``other`` are (seeds,) each, the same seeds in the same order."""
    found, rng = reach(arm, other, within), np.random.default_rng(resampling.seed)
    if found.level is None:
        return found
    shares = []
    for start in range(0, resampling.resamples, CHUNK):
        count = min(CHUNK, resampling.resamples - start)
        seeds = rng.integers(0, len(arm), size=(count, len(arm)))
        means, others = (_resampled(side, seeds, rng) for side in (arm, other))
        shares.append(_level_and_share(means, others, arm, other)[1])
    drawn = np.concatenate(shares)
    low = np.quantile(drawn, 0.025, method="lower")
    high = np.quantile(drawn, 0.975, method="higher")
    return found.model_copy(
        update={
            "ci95": (_known(float(low)), _known(float(high))),
            "reached": round(float(np.isfinite(drawn).mean()), DIGITS),
            "in_time": round(float((drawn <= within).mean()), DIGITS),
        }
    )


def _level_and_share(means: Array, others: Array, arm: Sequence[Curve], other: Sequence[Curve]) -> tuple[Array, Array]:
    """Level and share (...,) of mean curves (..., steps); a share of infinity where the level is not reached."""
    level = smoothed(others)[..., -1]
    there = smoothed(means) >= level[..., None]
    needed = np.where(there.any(-1), arm[0].dialogues[there.argmax(-1)], np.inf)
    return level, needed / other[0].dialogues[-1]


def _resampled(curves: Sequence[Curve], seeds: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """Mean curves (resamples, steps) over the drawn ``seeds`` (resamples, seeds), with the groups of each drawn too."""
    sums, counts = (np.stack([curve[part] for curve in curves]) for part in (0, 1))
    total = np.zeros((len(seeds), sums.shape[1]))
    for chosen in seeds.T:
        groups = rng.integers(0, sums.shape[2], size=(len(chosen), *sums.shape[1:]))
        tops, bottoms = (np.take_along_axis(part[chosen], groups, axis=2).sum(2) for part in (sums, counts))
        total += _ratio(tops, bottoms)
    return total / seeds.shape[1]


def _ratio(tops: Array, bottoms: Array) -> Array:
    return np.divide(tops, bottoms, out=np.full(tops.shape, np.nan), where=bottoms > 0)


def _known(value: float) -> float | None:
    return round(value, DIGITS) if np.isfinite(value) else None
