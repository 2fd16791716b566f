"""Scores that are a mean over a dialogue's replies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from envs.trajectory import Score, Stop, Trajectory


def per_reply(name: str, trajectory: Trajectory, values: Sequence[float | None], evidence: str) -> Score:
    """The mean of ``values`` (turns,) in [0, 1], one for each reply; None where one is missing, where nobody replied,
    and for a failed dialogue. Each turn's share is its value over the number of turns, so that the shares add up to the
    score and a longer talk is worth no more. Raises ValueError when there is not one value for each turn."""
    if len(values) != len(trajectory.turns):
        raise ValueError(f"{name}: {len(values)} values for {len(trajectory.turns)} turns")
    if trajectory.stop is Stop.ERROR:
        return Score(name=name, value=None, evidence=f"the dialogue failed: {trajectory.error}")
    if not values:
        return Score(name=name, value=None, evidence="nobody replied")
    known = [value for value in values if value is not None]
    whole = min(1.0, math.fsum(known) / len(values)) if len(known) == len(values) else None
    shares = tuple(None if value is None else value / len(values) for value in values)
    return Score(name=name, value=whole, evidence=evidence, per_turn=shares)
