"""Test and retest: how far the same turns are appraised alike when they are asked about again with another seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from envs.trajectory import Record, Trajectory


class Retest(Record):
    """``pairs`` of appraisals of the same turn; the mean absolute difference of their changes (points of emotion) and
    the share that is equal. Both are None without a pair; ``missing`` counts pairs of which one gave no answer."""

    pairs: int
    missing: int
    mean_difference: float | None
    equal: float | None


def retest_agreement(first: Sequence[int | None], again: Sequence[int | None]) -> Retest:
    """Compare two appraisals of the same turns, change by change; None where there was no answer."""
    both = [(a, b) for a, b in zip(first, again, strict=True) if a is not None and b is not None]
    differences = [abs(a - b) for a, b in both]
    return Retest(
        pairs=len(both),
        missing=len(first) - len(both),
        mean_difference=math.fsum(differences) / len(both) if both else None,
        equal=differences.count(0) / len(both) if both else None,
    )


def retests_of(trajectories: Sequence[Trajectory]) -> Retest:
    """``retest_agreement`` over every retested turn; each retest of a turn is a pair with what the turn went by."""
    first: list[int | None] = []
    again: list[int | None] = []
    for turn in (turn for trajectory in trajectories for turn in trajectory.turns):
        for appraisal in [turn.client.appraisal, *_members(turn.client.appraisal)]:
            if changes := appraisal.get("retests"):
                first += [appraisal["appraised"]["change"]] * len(changes)
                again += changes
    return retest_agreement(first, again)


def _members(appraisal: dict[str, Any]) -> list[dict[str, Any]]:
    return [member["appraisal"] for member in appraisal.get("members", [])]
