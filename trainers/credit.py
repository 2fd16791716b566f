"""Credit: from the totals of a batch, or from its scores one by one, to advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from envs.trajectory import Score
from rewards.combine import (
    decoupled_advantages,
    decoupled_turn_advantages,
    flat_groups,
    group_relative,
    in_groups,
    is_flat,
)


@dataclass(frozen=True)
class Credit:
    """``advantages`` (B,); ``groups_without_variance``: how many groups carry no signal, out of ``groups``."""

    advantages: tuple[float, ...]
    groups: int
    groups_without_variance: int


class CreditAssigner(Protocol):
    """Turns the scores of a batch (B,) into credit."""

    def of(self, scores: Sequence[Score]) -> Credit:
        """Credit for totals, with their parts, that stand group by group. A row without a total gets advantage 0."""
        ...


@dataclass(frozen=True)
class GroupRelative:
    """Advantage = total less the mean of its group (GRPO, arXiv 2402.03300), over the group's standard deviation.

    ``scale`` "none" leaves the division out (arXiv 2503.20783). The deviation is the sample's (n - 1). Unlike the
    paper, totals that could not be measured are left out of mean and deviation, and their rows get advantage 0.
    """

    group_size: int
    scale: Literal["group", "none"] = "group"

    def of(self, scores: Sequence[Score]) -> Credit:
        """Advantages (B,) of the totals of ``scores`` (B,)."""
        return self.assign([score.value for score in scores])

    def assign(self, totals: Sequence[float | None]) -> Credit:
        """Advantages (B,) of totals (B,). Raises ValueError when B is no multiple of the group size."""
        groups = in_groups(totals, self.group_size)
        advantages = [a for group in groups for a in group_relative(group, scaled=self.scale == "group")]
        return Credit(tuple(advantages), groups=len(groups), groups_without_variance=sum(map(is_flat, groups)))


@dataclass(frozen=True)
class GroupDecoupled:
    """Each reward measured against its group before they are added by weight (GDPO: see ``rewards.combine``).

    ``weights`` (rewards,), in the order of each row's scores; further parts of a total have none.
    """

    group_size: int
    weights: tuple[float, ...]

    def of(self, scores: Sequence[Score]) -> Credit:
        """Advantages (B,) of the parts of ``scores`` (B,); a row whose total could not be measured gets 0."""
        rows = [_measured(row, score) for row, score in zip(row_parts(scores), scores, strict=True)]
        return self.assign([row[: len(self.weights)] for row in rows])

    def assign(self, rows: Sequence[Sequence[Score]]) -> Credit:
        """Advantages (B,) of each row's scores. Raises ValueError when rows, groups and weights don't fit."""
        advantages = decoupled_advantages(rows, self.weights, self.group_size)
        flat = flat_groups(rows, self.weights, self.group_size)
        return Credit(tuple(advantages), groups=len(rows) // self.group_size, groups_without_variance=flat)

    def assign_turns(self, rows: Sequence[Sequence[Score]], turns: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Advantages of each of a row's ``turns`` (B,), with returns where a score has shares for each turn."""
        advantages = decoupled_turn_advantages(rows, self.weights, self.group_size, turns)
        return tuple(tuple(row) for row in advantages)


def _measured(row: Sequence[Score], total: Score) -> Sequence[Score]:
    """A row's parts; without values when its total has none, such as where a gate could not be judged."""
    return row if total.value is not None else [part.model_copy(update={"value": None}) for part in row]


def row_parts(scores: Sequence[Score]) -> list[tuple[Score, ...]]:
    """Each row's parts (B,), the same in every row: a row that was not scored has them without a value. A total without
    parts is its own."""
    names = next(([part.name for part in score.parts] for score in scores if score.parts), None)
    if names is None:
        return [(score.model_copy(update={"name": "total"}),) for score in scores]
    return [score.parts or tuple(Score(name=name, value=None) for name in names) for score in scores]
