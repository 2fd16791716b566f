"""Several scores of each dialogue made into advantages: each is measured against its group before they are added.

GDPO (Group reward-Decoupled Normalization Policy Optimization, arXiv 2601.05242): where totals are added first, unlike
mixes of scores meet in the same total, and the reward that varies most drowns the others. Here each reward is
normalised within its group, the results are added by weight, and the sums are scaled over the batch.

Rows (B,) stand group by group, and each holds its scores in the order of ``weights``. Unlike the paper:

- a row that lacks a score with a weight is left out of its group's means and deviations, and gets 0;
- the batch's mean is not taken off the sums. Over dialogues it is 0 anyway; over turns, taking it off would give an
  advantage to groups in which nothing differs;
- credit turn by turn, from returns compared at the same turn, is ours. Deviations are over dialogues, never over turns,
  or long dialogues would weigh more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from envs.trajectory import Score
from rewards.reward import weighted_total

T = TypeVar("T")

STD_FLOOR = 1e-4  # keeps a group of nearly equal values from blowing up
SAME = 1e-9  # values no further apart are equal: sums and means of the same numbers differ by rounding


def in_groups(rows: Sequence[T], group_size: int) -> list[Sequence[T]]:
    """The rows (B,) group by group. Raises ValueError when B is no multiple of the group size."""
    if len(rows) % group_size:
        raise ValueError(f"{len(rows)} rows can't be split into groups of {group_size}")
    return [rows[start : start + group_size] for start in range(0, len(rows), group_size)]


def is_flat(values: Sequence[float | None]) -> bool:
    """Whether a group tells its rows apart in nothing: its measured values are equal, or fewer than two."""
    measured = [value for value in values if value is not None]
    return len(measured) < 2 or max(measured) - min(measured) <= SAME


def group_relative(values: Sequence[float | None], *, scaled: bool = True) -> list[float]:
    """Each value of one group (n,) less their mean, over the sample's deviation (n - 1) where ``scaled``.

    A value that could not be measured is left out and gets 0; so does every value of a flat group.
    """
    if is_flat(values):
        return [0.0] * len(values)
    measured = [value for value in values if value is not None]
    mean = statistics.fmean(measured)
    divisor = statistics.stdev(measured) + STD_FLOOR if scaled else 1.0
    return [0.0 if value is None else (value - mean) / divisor for value in values]


def decoupled_advantages(rows: Sequence[Sequence[Score]], weights: Sequence[float], group_size: int) -> list[float]:
    """Advantages (B,) of whole dialogues. Raises ValueError when rows, groups and weights don't fit together."""
    sums = []
    for group in in_groups(rows, group_size):
        parts = [group_relative(values) for values in _columns(group, weights)]
        sums += [_weighted(part, weights) for part in zip(*parts, strict=True)]
    divisor = _batch_deviation(sums, sum(weighted_total(row, weights) is not None for row in rows))
    return [value / divisor for value in sums]


def decoupled_turn_advantages(
    rows: Sequence[Sequence[Score]], weights: Sequence[float], group_size: int, turns: Sequence[int]
) -> list[list[float]]:
    """Advantages of each turn: for each row (B,) as many as ``turns`` says.

    A reward that has shares for all turns of a group is taken turn by turn: what was earned from a turn on is measured
    against what the group's others earned from the same turn on. Another reward counts whole on every turn. Shares have
    to add up to what the dialogue earned (the emotion's changes do); a judge's marks per turn are divided by the turns
    first, or talking longer would pay. Raises ValueError as above, and when shares and ``turns`` differ.
    """
    sums: list[list[float]] = []
    lengths = in_groups(turns, group_size)
    for group, played in zip(in_groups(rows, group_size), lengths, strict=True):
        parts = [
            _turn_part([row[place] for row in group], values, played)
            for place, values in enumerate(_columns(group, weights))
        ]
        for row, count in enumerate(played):
            sums.append([_weighted([part[row][turn] for part in parts], weights) for turn in range(count)])
    measured = [weighted_total(row, weights) is not None for row in rows]
    counted = sum(count for count, known in zip(turns, measured, strict=True) if known)
    divisor = _batch_deviation([value for row in sums for value in row], counted)
    return [[value / divisor for value in row] for row in sums]


def flat_groups(rows: Sequence[Sequence[Score]], weights: Sequence[float], group_size: int) -> int:
    """How many groups carry no signal: not one reward with a weight tells their rows apart."""
    return sum(
        all(is_flat(values) for values, weight in zip(_columns(group, weights), weights, strict=True) if weight > 0)
        for group in in_groups(rows, group_size)
    )


def _columns(group: Sequence[Sequence[Score]], weights: Sequence[float]) -> list[list[float | None]]:
    """Each reward's values in one group, (rewards, n); all None in a row that lacks a score with a weight."""
    names = [score.name for score in group[0]]
    if any([score.name for score in row] != names for row in group):
        raise ValueError(f"every row needs the same scores in the same order: {', '.join(names)}")
    whole = [weighted_total(row, weights) is not None for row in group]
    return [
        [row[place].value if known else None for row, known in zip(group, whole, strict=True)]
        for place in range(len(weights))
    ]


def _turn_part(scores: Sequence[Score], values: Sequence[float | None], turns: Sequence[int]) -> list[list[float]]:
    """One reward's normalised returns in one group: for each row, one for each of its turns."""
    shares: list[list[float] | None] = []
    for score, value, count in zip(scores, values, turns, strict=True):
        given = score.per_turn
        if value is not None and given is not None and len(given) != count:
            raise ValueError(f"{score.name}: {len(given)} shares for a dialogue of {count} turns")
        known = [share for share in given or () if share is not None]
        shares.append(known if value is not None and given is not None and len(known) == count else None)
    if any(share is None and value is not None for share, value in zip(shares, values, strict=True)):
        whole = group_relative(values)
        return [[value] * count for value, count in zip(whole, turns, strict=True)]
    return relative_returns(shares, turns)


def relative_returns(
    shares: Sequence[Sequence[float] | None], turns: Sequence[int], *, scaled: bool = True, discount: float = 1.0
) -> list[list[float]]:
    """What each row of one group (n,) earned from each of its ``turns`` on, against the others at the same turn.

    From a row's ``shares`` (turns,) its returns are the sums from each turn on, in which what comes k turns later
    counts ``discount`` ** k. From each is taken the mean over the rows that had that turn; where ``scaled``, it is
    divided by the sample's deviation (n - 1) of what dialogues earned from their first turn on, in which every dialogue
    counts once however long it was. A row without shares is left out and gets 0; so
    does a turn that only one row had, and every turn of a group in which all earned the same.
    """
    returns = [
        None if share is None else list(accumulate(reversed(share), lambda later, now: now + discount * later))[::-1]
        for share in shares
    ]
    return relative_to_turn(returns, [path[0] if path else None for path in returns], turns, scaled=scaled)


def relative_to_turn(
    paths: Sequence[Sequence[float] | None],
    wholes: Sequence[float | None],
    turns: Sequence[int],
    *,
    scaled: bool = True,
) -> list[list[float]]:
    """Each row's ``paths`` (turns,) less the mean of the group (n,) at the same turn, over the deviation of ``wholes``
    (n,), one number a dialogue; see ``relative_returns``."""
    relative = [[0.0] * count for count in turns]
    if is_flat(wholes):
        return relative
    divisor = statistics.stdev([whole for whole in wholes if whole is not None]) + STD_FLOOR if scaled else 1.0
    for turn in range(max(turns, default=0)):
        here = {row: path[turn] for row, path in enumerate(paths) if path is not None and turn < len(path)}
        mean = statistics.fmean(here.values()) if here else 0.0
        for row, value in here.items():
            relative[row][turn] = (value - mean) / divisor if len(here) > 1 else 0.0
    return relative


def _weighted(parts: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(part * weight for part, weight in zip(parts, weights, strict=True))


def _batch_deviation(sums: Sequence[float], measured: int) -> float:
    """The sample's deviation of ``measured`` sums around 0; those that could not be measured are 0 and add nothing."""
    return math.sqrt(math.fsum(value**2 for value in sums) / max(1, measured - 1)) + STD_FLOOR
