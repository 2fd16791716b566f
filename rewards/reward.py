"""Rewards: scores of a finished dialogue, pure over its record, so that a saved run can be scored again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from envs.trajectory import Record, Score, Trajectory


class Reward(Protocol):
    """Scores a trajectory. What can't be measured is a Score with value None, never 0."""

    name: str

    async def score(self, trajectory: Trajectory) -> Score:
        """The score of one finished dialogue."""
        ...


class ScoredTrajectory(Record):
    """A trajectory with its scores and their weighted total in [0, 1]; the total is None when a weighted part is."""

    trajectory: Trajectory
    scores: tuple[Score, ...]
    total: float | None


def weighted_total(scores: Sequence[Score], weights: Sequence[float]) -> float | None:
    """The weighted mean of the scores' values; None when any score with a weight above 0 has none."""
    parts = [(score.value, weight) for score, weight in zip(scores, weights, strict=True) if weight > 0]
    if not parts or any(value is None for value, _ in parts):
        return None
    whole = sum(weight for _, weight in parts)
    return sum(value * weight for value, weight in parts if value is not None) / whole


def weighted_turns(scores: Sequence[Score], weights: Sequence[float], turns: int) -> tuple[float, ...] | None:
    """What each of a dialogue's ``turns`` adds to the weighted total, (turns,); None where the total is.

    A score with shares for all turns gives them, and they add up to what the dialogue gained in it (the emotion's
    changes to the final emotion less the first); any other counts whole on the last turn.
    """
    if not turns or weighted_total(scores, weights) is None:
        return None
    whole, sums = sum(weight for weight in weights if weight > 0), [0.0] * turns
    for score, weight in zip(scores, weights, strict=True):
        if weight > 0 and score.value is not None:
            shares = [share for share in score.per_turn or () if share is not None]
            shares = shares if len(shares) == turns else [0.0] * (turns - 1) + [score.value]
            sums = [total + share * weight / whole for total, share in zip(sums, shares, strict=True)]
    return tuple(sums)


async def scored(trajectory: Trajectory, rewards: Sequence[tuple[Reward, float]]) -> ScoredTrajectory:
    """Score one trajectory with every reward. ``rewards`` pairs each with its weight."""
    scores = tuple([await reward.score(trajectory) for reward, _ in rewards])
    return ScoredTrajectory(
        trajectory=trajectory, scores=scores, total=weighted_total(scores, [weight for _, weight in rewards])
    )
