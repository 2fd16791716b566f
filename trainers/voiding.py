"""What of a dialogue's scores counts: a closed gate voids what was gained, a broken form everything, if required."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from envs.trajectory import Score, Trajectory
from rewards.gates import GateVerdict, gated_emotions

GATES, FORM = "gates", "form"


@dataclass(frozen=True)
class Findings:
    """What the gates say of a dialogue: every verdict, and those that count. ``broken``: the replies that break a form
    that is required, by turn from 0, with what is wrong."""

    verdicts: Sequence[GateVerdict]
    counting: Sequence[GateVerdict]
    broken: Mapping[int, str]

    @property
    def closed(self) -> list[GateVerdict]:
        """The verdicts that count and close."""
        return [verdict for verdict in self.counting if verdict.closed]

    @property
    def blind(self) -> bool:
        """Whether one that counts could not be judged, so that nobody knows what the total is."""
        return any(verdict.closed is None for verdict in self.counting)


def counted(part: Score, trajectory: Trajectory, found: Findings) -> Score:
    """A part as it counts, with what it was in its evidence; one that could not be measured stays None.

    After a gate closed the emotion counts at most its start, every other reward nothing: if another reward counted on,
    it could buy back what the gate took. After a broken form nothing counts.
    """
    if part.value is not None and found.closed:
        part = _behind_gates(part, trajectory, found.closed)
    if part.value is not None and found.broken:
        part = _without_form(part, trajectory, found.broken)
    return part


def _behind_gates(part: Score, trajectory: Trajectory, closed: Sequence[GateVerdict]) -> Score:
    said = f"{part.evidence}; void ({part.value:g}): {'; '.join(map(_told, closed))}"
    if part.name != "emotion":
        none = None if part.per_turn is None else tuple(0.0 for _ in part.per_turn)
        return part.model_copy(update={"value": 0.0, "per_turn": none, "evidence": said})
    emotions = gated_emotions(trajectory, closed)
    changes = tuple((after - before) / 100 for before, after in pairwise(emotions))
    return part.model_copy(update={"value": emotions[-1] / 100, "per_turn": changes, "evidence": said})


def _without_form(part: Score, trajectory: Trajectory, broken: Mapping[int, str]) -> Score:
    """Of the emotion's shares its start is lost at the first reply that breaks the form, so that start and shares
    still add up to the value; the shares of others are 0."""
    said = f"{part.evidence}; void ({part.value:g}): {'; '.join(broken.values())}"
    shares = [0.0 for _ in part.per_turn or ()]
    if shares and part.name == "emotion":
        shares[min(broken)] = -trajectory.emotions[0] / 100
    per_turn = None if part.per_turn is None else tuple(shares)
    return part.model_copy(update={"value": 0.0, "per_turn": per_turn, "evidence": said})


def gate_score(found: Findings) -> Score:
    """1: every gate that counts passed on every reply, 0: one closed, None: one could not be judged."""
    closed, unknown = ([v for v in found.verdicts if v.closed is state] for state in (True, None))
    states = {verdict.closed for verdict in found.counting}
    value = 0.0 if True in states else None if None in states else 1.0
    told = "; ".join([*map(_told, closed), *(f"{v.gate} at turn {v.turn + 1}: {v.cause}" for v in unknown)])
    return Score(name=GATES, value=value, evidence=told or "every gate passed")


def form_score(found: Findings) -> Score:
    """1: every reply keeps the form, 0: one breaks it."""
    broken = "; ".join(found.broken.values())
    return Score(name=FORM, value=float(not broken), evidence=broken or "every reply keeps it")


def _told(verdict: GateVerdict) -> str:
    return f"{verdict.gate} closed at turn {verdict.turn + 1} ({verdict.cause}): “{verdict.evidence}”"
