"""A rubric as a comparison: each dialogue of a group against every other, by the judge that would rate them.

It takes the place of a rating that tells a group's dialogues apart in nothing (``rewards.dead_signal``). Like a
judgment, a comparison is written down before it counts, and comes back from its raw answers without a model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Protocol

from envs.cards import Language
from envs.models.model_client import ModelClient
from envs.trajectory import Score, Trajectory
from rewards.dead_signal import Duel, win_shares
from rewards.judge import Judge, compared_again
from rewards.judgments import Comparison, digest_of
from rewards.rubric_reward import wins_by_order

Digests = tuple[str, str]


class PairSource(Protocol):
    """Where comparisons come from: models that are asked, or a record."""

    async def __call__(self, first: Trajectory, second: Trajectory) -> Comparison | None:
        """The comparison of two dialogues with one card, in both orders; None where there is none."""
        ...


class AskedComparisons:
    """Asks the models, and hands each comparison to ``keep``, which writes it down before it counts.

    ``models`` makes views of the models for one comparison, so that a deadline is that comparison's own.
    """

    def __init__(
        self,
        judge: Judge,
        models: Callable[[], Sequence[ModelClient]],
        language_of: Callable[[Trajectory], Language],
        keep: Callable[[Comparison], None],
    ) -> None:
        self._judge, self._models, self._language_of, self._keep = judge, models, language_of, keep

    async def __call__(self, first: Trajectory, second: Trajectory) -> Comparison:
        """A new comparison."""
        comparison = await self._judge.compare(first, second, self._models(), self._language_of(first))
        self._keep(comparison)
        return comparison


class RecordedComparisons:
    """Looks comparisons up by their trajectories, and takes none that its own raw answers don't bring back, or that
    another judge made: other ``models``, rules or language."""

    def __init__(
        self,
        comparisons: Mapping[Digests, Comparison],
        judge: Judge,
        models: Sequence[str],
        language_of: Callable[[Trajectory], Language],
    ) -> None:
        self._comparisons, self._judge, self._language_of = comparisons, judge, language_of
        self._models = set(models)

    async def __call__(self, first: Trajectory, second: Trajectory) -> Comparison | None:
        """The recorded comparison. Raises ValueError when it was changed, or is not this judge's."""
        comparison = self._comparisons.get((digest_of(first), digest_of(second)))
        if comparison is None:
            return None
        told = f"the comparison of {first.dialogue_id} with {second.dialogue_id}"
        made_by = set(comparison.models), comparison.rules, comparison.language
        if made_by != (self._models, self._judge.rules, self._language_of(first)):
            raise ValueError(f"{told} was made by another judge")
        if await compared_again(comparison, first, second, self._judge.rubric) != comparison:
            raise ValueError(f"{told} is not what its recorded answers come to")
        return comparison


class PairwiseRubric:
    """Scores the dialogues of one group by the share of the others that each beats. ``weights`` by axis."""

    def __init__(self, name: str, weights: Mapping[str, float], find: PairSource) -> None:
        self.name, self._weights, self._find = name, weights, find

    async def scores(self, members: Sequence[Trajectory]) -> list[Score]:
        """The scores (members,) of dialogues with one card; None for one that lacks a pair, or has no other.

        What can't be compared is data: nothing is raised for it.
        """
        places = list(combinations(range(len(members)), 2))
        found = await asyncio.gather(*(self._compared(members[i], members[j]) for i, j in places))
        duels: list[Duel] = []
        missing: list[list[str]] = [[] for _ in members]
        for (i, j), comparison in zip(places, found, strict=True):
            straight, swapped = wins_by_order(comparison, self._weights) if comparison else (None, None)
            duels.append(Duel(first=i, second=j, first_wins=straight))
            duels.append(Duel(first=j, second=i, first_wins=None if swapped is None else 1 - swapped))
            if straight is None or swapped is None:
                why = _why(comparison)
                missing[i].append(f"{members[j].dialogue_id} ({why})")
                missing[j].append(f"{members[i].dialogue_id} ({why})")
        shares = win_shares(len(members), duels)
        return [
            Score(name=self.name, value=share, evidence=_told(share, len(members) - 1, lacks))
            for share, lacks in zip(shares, missing, strict=True)
        ]

    async def _compared(self, first: Trajectory, second: Trajectory) -> Comparison | None:
        try:
            return await self._find(first, second)
        except Exception:  # what can't be compared is data, whatever made it fail
            return None


def _why(comparison: Comparison | None) -> str:
    if comparison is None:
        return "no comparison"
    if comparison.unasked:
        return comparison.unasked.value
    return ", ".join(cause.value for cause in comparison.causes) or "no axis carries weight"


def _told(share: float | None, others: int, lacks: Sequence[str]) -> str:
    if share is not None:
        return f"beats {share:.3g} of {others} others"
    return f"not compared with {'; '.join(lacks)}" if lacks else "there is no other dialogue to compare with"
