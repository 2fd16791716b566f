"""The rubric reward: the weighted mean of a judge's scores on the axes that may carry weight.

An axis carries weight only where a certificate that passes covers the judge's model, its prompt and the rubric, or the
config says that it does without. Every other axis is judged and told in the evidence, and counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from envs.cards import Language
from envs.models.model_client import ModelClient
from envs.trajectory import Score, Trajectory
from rewards.certificate import Certificate
from rewards.judge import Judge, replayed
from rewards.judgments import AxisVerdict, Comparison, Judgment, PairVerdict, Verdict, digest_of
from rewards.rubric import Rubric


class Subject(NamedTuple):
    """Who judges: a model, and the hash of the prompt that it is asked with."""

    model: str
    prompt_hash: str


class Standing(NamedTuple):
    """What the axes of a rubric may carry: their weights (0: read-only), and why those are refused that are."""

    weights: Mapping[str, float]
    refused: Mapping[str, str]

    @property
    def read_only(self) -> bool:
        """Whether no axis carries weight, so that the reward has no value."""
        return not any(self.weights.values())


def standing_of(
    rubric: Rubric, subjects: Sequence[Subject], certificates: Sequence[Certificate], *, uncertified: bool = False
) -> Standing:
    """The weights of the rubric's axes when ``subjects`` judge: every one of them has to be covered on an axis.

    ``certificates`` are loaded ones, whose signature was checked. ``uncertified``: weight without a certificate.
    """
    weights, refused = {}, {}
    for axis in rubric.axes:
        gaps = [gap for subject in subjects if (gap := _gap(rubric, axis.name, subject, certificates))]
        if gaps and not uncertified:
            refused[axis.name] = gaps[0]
        weights[axis.name] = 0.0 if axis.name in refused else axis.weight
    return Standing(weights, refused)


def _gap(rubric: Rubric, axis: str, subject: Subject, certificates: Sequence[Certificate]) -> str | None:
    """Why no certificate covers ``subject`` on ``axis``: the reason of the one that comes nearest; None: one does."""
    gaps = [one.gap(rubric.hash, axis, subject.model, subject.prompt_hash) for one in certificates]
    if None in gaps:
        return None
    return next((gap for gap in gaps if gap and "does not pass" in gap), gaps[0] if gaps else "there is no certificate")


def score_of(
    judgment: Judgment, rubric: Rubric, weights: Mapping[str, float] | None = None, name: str | None = None
) -> Score:
    """The score that a judgment comes to; pure. ``weights`` by axis (None: the rubric's own).

    ``value`` is the weighted mean over the axes that carry weight, and over the replies where the rubric is about a
    turn; None where one of these could not be measured or no axis carries weight. ``per_turn`` (turns,) holds each
    reply's mean divided by the number of replies, so that the shares add up to the value and a longer talk is worth no
    more. Raises ValueError when the judgment is by another rubric.
    """
    if judgment.rubric_hash != rubric.hash:
        raise ValueError(f"the judgment of {judgment.dialogue_id} is by another rubric than {rubric.name}")
    weights = {axis.name: axis.weight for axis in rubric.axes} if weights is None else weights
    name = name or f"rubric-{rubric.name}"
    if judgment.unasked:
        return Score(name=name, value=None, evidence=f"not judged: {judgment.unasked.value}")
    means = [_mean({axis.axis: axis.score for axis in verdict.axes}, weights) for verdict in judgment.verdicts]
    known = [mean for mean in means if mean is not None]
    value = math.fsum(known) / len(means) if means and len(known) == len(means) else None
    per_turn = None
    if rubric.scope == "turn":
        per_turn = tuple(None if mean is None else mean / len(means) for mean in means)
    return Score(name=name, value=value, evidence=_evidence(judgment, weights), per_turn=per_turn)


def first_wins_of(comparison: Comparison, weights: Mapping[str, float]) -> float | None:
    """How far the first dialogue is better, 0 to 1, both orders counted: the weighted mean over the axes."""
    return _wins(comparison, weights, lambda verdict: verdict.first_wins)


def wins_by_order(comparison: Comparison, weights: Mapping[str, float]) -> tuple[float | None, float | None]:
    """The same for each order: as the first dialogue was shown first, and as it was shown second."""
    return (
        _wins(comparison, weights, lambda verdict: verdict.shown_first),
        _wins(comparison, weights, lambda verdict: verdict.shown_second),
    )


def _wins(
    comparison: Comparison, weights: Mapping[str, float], part: Callable[[PairVerdict], float | None]
) -> float | None:
    return _mean({verdict.axis: part(verdict) for verdict in comparison.verdicts}, weights)


def _mean(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The weighted mean; None where a value with a weight is missing, or nothing has a weight."""
    parts = [(values.get(axis), weight) for axis, weight in weights.items() if weight > 0]
    if not parts or any(value is None for value, _ in parts):
        return None
    return math.fsum(value * weight for value, weight in parts if value is not None) / math.fsum(w for _, w in parts)


def _evidence(judgment: Judgment, weights: Mapping[str, float]) -> str:
    """Every axis' level, spread and quote, read-only ones marked, reply by reply."""
    return "; ".join(_told(verdict, axis, weights) for verdict in judgment.verdicts for axis in verdict.axes)


def _told(verdict: Verdict, axis: AxisVerdict, weights: Mapping[str, float]) -> str:
    where = "" if verdict.turn is None else f"turn {verdict.turn + 1} "
    if axis.level is None:
        found = f"None ({', '.join(cause.value for cause in axis.causes)})"
    else:
        spread = "" if axis.spread is None else f" ± {axis.spread:.2f}"
        found = f"{axis.level:g}{spread}" + "".join(f" “{quote}”" for quote in axis.evidence[:1])
    return f"{where}{axis.axis} {found}{'' if weights.get(axis.axis) else ' [read-only]'}"


class Source(Protocol):
    """Where judgments come from: models that are asked, or a record."""

    async def __call__(self, trajectory: Trajectory) -> Judgment | None:
        """The judgment of one dialogue; None where there is none."""
        ...


class AskedJudgments:
    """Asks the models, and hands each judgment to ``keep``, which writes it down before it is scored.

    ``models_for`` makes views of the models for one dialogue, so that a deadline is that dialogue's own.
    """

    def __init__(
        self,
        judge: Judge,
        models_for: Callable[[Trajectory], Sequence[ModelClient]],
        language_of: Callable[[Trajectory], Language],
        keep: Callable[[Judgment], None],
    ) -> None:
        self._judge, self._models_for, self._language_of, self._keep = judge, models_for, language_of, keep

    async def __call__(self, trajectory: Trajectory) -> Judgment:
        """A new judgment."""
        judgment = await self._judge.judge(trajectory, self._models_for(trajectory), self._language_of(trajectory))
        self._keep(judgment)
        return judgment


class RecordedJudgments:
    """Looks judgments up by trajectory, and takes none that its own raw answers don't bring back."""

    def __init__(self, judgments: Mapping[str, Judgment], rubric: Rubric) -> None:
        self._judgments, self._rubric = judgments, rubric

    async def __call__(self, trajectory: Trajectory) -> Judgment | None:
        """The recorded judgment. Raises ValueError when it was changed after it was made."""
        judgment = self._judgments.get(digest_of(trajectory))
        if judgment is not None and await replayed(judgment, trajectory, self._rubric) != judgment:
            raise ValueError(f"the judgment of {judgment.dialogue_id} is not what its recorded answers come to")
        return judgment


class RubricReward:
    """A judge's verdict as a reward. ``standing.refused`` says which axes are read-only, and why."""

    def __init__(
        self,
        judge: Judge,
        find: Source,
        models: Sequence[str],
        languages: Sequence[Language],
        certificates: Sequence[Certificate] = (),
        *,
        uncertified: bool = False,
    ) -> None:
        self.name = f"rubric-{judge.rubric.name}"
        self._rubric, self._rules, self._find = judge.rubric, judge.rules, find
        self._subjects = [Subject(model, judge.prompt_hash(language)) for model in models for language in languages]
        self.standing = standing_of(judge.rubric, self._subjects, certificates, uncertified=uncertified)

    async def score(self, trajectory: Trajectory) -> Score:
        """The score of one dialogue; None where it was not judged, or by others than those that carry the weight."""
        judgment = await self._find(trajectory)
        if judgment is None:
            return Score(name=self.name, value=None, evidence="the record holds no judgment of this dialogue")
        if judgment.unasked is None and (why := self._foreign(judgment)):
            return Score(name=self.name, value=None, evidence=f"the judgment is not this judge's: {why}")
        return score_of(judgment, self._rubric, self.standing.weights, self.name)

    def _foreign(self, judgment: Judgment) -> str | None:
        """What of a judgment differs from the judge that was named."""
        if judgment.rules != self._rules:
            return "it was made by other rules"
        others = [model for model in judgment.models if Subject(model, judgment.prompt_hash) not in self._subjects]
        return f"{others[0]} or its prompt was not named" if others else None
