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


async def scored(trajectory: Trajectory, rewards: Sequence[tuple[Reward, float]]) -> ScoredTrajectory:
    """Score one trajectory with every reward. ``rewards`` pairs each with its weight."""
    scores = tuple([await reward.score(trajectory) for reward, _ in rewards])
    return ScoredTrajectory(
        trajectory=trajectory, scores=scores, total=weighted_total(scores, [weight for _, weight in rewards])
    )
