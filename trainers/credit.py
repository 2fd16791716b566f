"""Credit: from the totals of a batch to advantages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

# Keeps a group of nearly equal totals from blowing up.
STD_FLOOR = 1e-4


@dataclass(frozen=True)
class Credit:
    """``advantages`` (B,); ``groups_without_variance``: how many groups carry no signal, out of ``groups``."""

    advantages: tuple[float, ...]
    groups: int
    groups_without_variance: int


class CreditAssigner(Protocol):
    """Turns totals (B,), None where a total could not be measured, into credit."""

    def assign(self, totals: Sequence[float | None]) -> Credit:
        """Credit for a batch whose rows stand group by group. A row without a total gets advantage 0."""
        ...


@dataclass(frozen=True)
class GroupRelative:
    """Advantage = total less the mean of its group (GRPO, arXiv 2402.03300), over the group's standard deviation.

    ``scale`` "none" leaves the division out (arXiv 2503.20783). The deviation is the sample's (n - 1). Unlike the
    paper, totals that could not be measured are left out of mean and deviation, and their rows get advantage 0.
    """

    group_size: int
    scale: Literal["group", "none"] = "group"

    def assign(self, totals: Sequence[float | None]) -> Credit:
        """Advantages (B,) of totals (B,). Raises ValueError when B is no multiple of the group size."""
        if len(totals) % self.group_size:
            raise ValueError(f"{len(totals)} totals can't be split into groups of {self.group_size}")
        groups = [totals[start : start + self.group_size] for start in range(0, len(totals), self.group_size)]
        advantages = [advantage for group in groups for advantage in self._group(group)]
        flat = sum(len({total for total in group if total is not None}) < 2 for group in groups)
        return Credit(tuple(advantages), groups=len(groups), groups_without_variance=flat)

    def _group(self, totals: Sequence[float | None]) -> list[float]:
        measured = [total for total in totals if total is not None]
        if len(set(measured)) < 2:
            return [0.0] * len(totals)
        mean = statistics.fmean(measured)
        divisor = statistics.stdev(measured) + STD_FLOOR if self.scale == "group" else 1.0
        return [0.0 if total is None else (total - mean) / divisor for total in totals]
