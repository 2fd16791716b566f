"""Judgments: what a judge's models answered about a dialogue, and the verdict that follows from it.

A judgment lies beside the trajectory that it is about, one JSON line each, with every raw answer. Given the trajectory
and the rubric, ``rewards.judge.replayed`` brings it back without a model.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError, model_validator

from envs.cards import Language
from envs.errors import InputError, describe_validation
from envs.hashing import canonical, content_hash
from envs.models.calls import Call
from envs.models.model_client import Answer, Ask, ModelError
from envs.trajectory import Record, Trajectory
from rewards.rubric import Rubric
from rewards.verdicts import Cause, Evidence, PairReading, Reading

Count = Annotated[int, Field(ge=1)]
Unit = Annotated[float, Field(ge=0, le=1)]
Causes = dict[Cause, int]


class JudgeRules(Record):
    """How a judge is asked. ``samples``: how often each model, with a seed each; ``attempts``: how often one sample is
    asked for at most; ``longest_quote`` and ``longest_reason`` in characters, ``max_tokens`` of a whole answer.
    ``evidence``: the words that a verdict rests on ("quote"), or the number of the reply ("number"), which asks less of
    a model and shows less of why."""

    seed: int = 0
    samples: Count = 1
    attempts: Count = 3
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Count = 2048
    longest_quote: Annotated[int, Field(ge=20, le=1000)] = 200
    longest_reason: Annotated[int, Field(ge=20, le=1000)] = 240
    evidence: Evidence = "quote"

    @model_validator(mode="after")
    def _samples_differ(self) -> JudgeRules:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 are all alike at temperature 0; raise temperature, or name more models")
        return self


class Opinion(Record):
    """One sample of one model about a dialogue (``turn`` None) or about the reply of a turn (from 0).

    ``axes`` holds a reading for each axis, the first usable one of the calls; ``causes`` counts what was wrong, over
    all calls: once for an answer that was of no use at all, else once for each axis.
    """

    model: str
    turn: int | None
    sample: int
    calls: tuple[Call, ...]
    axes: dict[str, Reading]
    causes: Causes


class AxisVerdict(Record):
    """What the opinions come to on one axis. ``level`` is their mean, ``score`` the same as a share of the scale,
    ``spread`` their standard deviation in levels (n - 1), None below two. ``causes``: why opinions have no level."""

    axis: str
    level: float | None
    score: Unit | None
    spread: float | None
    evidence: tuple[str, ...]
    causes: Causes


class Verdict(Record):
    """The verdict on a dialogue (``turn`` None) or on the reply of a turn (from 0)."""

    turn: int | None
    axes: tuple[AxisVerdict, ...]


class Judgment(Record):
    """What a judge said of one trajectory, by its digest. ``models`` are those that were asked, in order.

    ``unasked``: why no model was asked, None where one was; ``verdicts`` are empty then. ``causes`` counts over all
    opinions.
    """

    dialogue_id: str
    trajectory: str
    rubric: str
    rubric_hash: str
    language: Language
    prompt_hash: str
    rules: JudgeRules
    models: tuple[str, ...]
    opinions: tuple[Opinion, ...]
    verdicts: tuple[Verdict, ...]
    unasked: Cause | None
    causes: Causes


class PairOpinion(Record):
    """One sample of one model about two talks. ``swapped``: the second talk was shown first."""

    model: str
    swapped: bool
    sample: int
    calls: tuple[Call, ...]
    axes: dict[str, PairReading]
    causes: Causes


class PairVerdict(Record):
    """One axis of two talks. ``first_wins``: 1 where the first is better, 0 where the second is, 0.5 for a tie, means
    over the samples; None where half of them or more did not say. ``shown_first`` and ``shown_second``: the same
    from the answers to one order alone. ``contradictions``: samples that chose the same place in both orders."""

    axis: str
    first_wins: Unit | None
    shown_first: Unit | None
    shown_second: Unit | None
    spread: float | None
    contradictions: int
    causes: Causes


class Comparison(Record):
    """What a judge said of two trajectories of one card, by their ids and digests."""

    dialogue_ids: tuple[str, str]
    trajectories: tuple[str, str]
    rubric: str
    rubric_hash: str
    language: Language
    prompt_hash: str
    rules: JudgeRules
    models: tuple[str, ...]
    opinions: tuple[PairOpinion, ...]
    verdicts: tuple[PairVerdict, ...]
    unasked: Cause | None
    causes: Causes


Judged = TypeVar("Judged", Judgment, Comparison)


def digest_of(trajectory: Trajectory) -> str:
    """SHA-256 (hex) over the trajectory as it is recorded, its receipt left out."""
    return content_hash(trajectory.model_dump(mode="json"))


def axis_verdicts(rubric: Rubric, opinions: Sequence[Opinion]) -> tuple[AxisVerdict, ...]:
    """What the opinions about one dialogue or reply come to, axis by axis. More than half of them have to have a
    level, or the axis is not measured: a mean over the few that came through would be of another kind."""
    found = []
    for axis in rubric.axes:
        readings = [opinion.axes[axis.name] for opinion in opinions]
        levels = [reading.level for reading in readings if reading.level is not None]
        level = statistics.fmean(levels) if 2 * len(levels) > len(readings) else None
        found.append(
            AxisVerdict(
                axis=axis.name,
                level=level,
                score=None if level is None else rubric.unit(level),
                spread=_spread(levels),
                evidence=tuple(dict.fromkeys(reading.evidence for reading in readings if reading.evidence)),
                causes=_counted(reading.cause for reading in readings),
            )
        )
    return tuple(found)


def pair_verdicts(rubric: Rubric, opinions: Sequence[PairOpinion]) -> tuple[PairVerdict, ...]:
    """What both orders come to, axis by axis: one that wins in both wins, and a contradiction is a tie."""
    orders: dict[tuple[str, int], dict[bool, PairOpinion]] = {}
    for opinion in opinions:
        orders.setdefault((opinion.model, opinion.sample), {})[opinion.swapped] = opinion
    found = []
    for axis in rubric.axes:
        shown = [(_wins(pair[False].axes[axis.name]), _wins(pair[True].axes[axis.name])) for pair in orders.values()]
        both = [(straight, 1 - swapped) for straight, swapped in shown if straight is not None and swapped is not None]
        wins = [(straight + swapped) / 2 for straight, swapped in both]
        known = 2 * len(wins) > len(orders)
        found.append(
            PairVerdict(
                axis=axis.name,
                first_wins=statistics.fmean(wins) if known else None,
                shown_first=statistics.fmean(straight for straight, _ in both) if known else None,
                shown_second=statistics.fmean(swapped for _, swapped in both) if known else None,
                spread=_spread(wins),
                contradictions=sum({straight, swapped} == {0.0, 1.0} for straight, swapped in both),
                causes=_counted(opinion.axes[axis.name].cause for opinion in opinions),
            )
        )
    return tuple(found)


def _wins(reading: PairReading) -> float | None:
    """How far the talk that was shown first is better."""
    return None if reading.better is None else {"first": 1.0, "tie": 0.5, "second": 0.0}[reading.better]


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _counted(causes: Iterable[Cause | None]) -> Causes:
    return dict(sorted(Counter(cause for cause in causes if cause is not None).items()))


def total_causes(opinions: Iterable[Opinion | PairOpinion]) -> Causes:
    """The causes of all opinions, added up."""
    total: Counter[Cause] = Counter()
    for opinion in opinions:
        total.update(opinion.causes)
    return dict(sorted(total.items()))


class RecordedJudge:
    """Stands for one model of a recorded judgment: gives each recorded answer to the very prompt that it answered."""

    def __init__(self, model: str, calls: Iterable[Call]) -> None:
        self.model = model
        self._calls = {call.prompt: call for call in calls}

    async def ask(self, ask: Ask) -> Answer:
        """The recorded answer. Raises ModelError when the record has none to this prompt."""
        call = self._calls.get(ask.prompt_hash)
        if call is None:
            raise ModelError(f"the record holds no answer of {self.model} to this prompt")
        return Answer(text=call.raw, model=call.model)


def recorded_models(judged: Judgment | Comparison) -> list[RecordedJudge]:
    """The models of a judgment, each with its recorded answers."""
    return [
        RecordedJudge(model, [call for one in judged.opinions if one.model == model for call in one.calls])
        for model in judged.models
    ]


def judgment_line(judged: Judgment | Comparison) -> str:
    """The JSON line to record."""
    return canonical(judged.model_dump(mode="json"))


def read_judgments(path: Path) -> Mapping[str, Judgment]:
    """The judgments in a file, by the digest of their trajectory. Raises InputError naming the file and the line."""
    found: dict[str, Judgment] = {}
    for number, judgment in _read(path, Judgment):
        if judgment.trajectory in found:
            raise InputError(f"{path}:{number}: judges {judgment.dialogue_id} a second time; remove one of the lines")
        found[judgment.trajectory] = judgment
    return found


def read_comparisons(path: Path) -> Mapping[tuple[str, str], Comparison]:
    """The comparisons in a file, by the digests of both trajectories. Raises InputError as ``read_judgments``."""
    found: dict[tuple[str, str], Comparison] = {}
    for number, comparison in _read(path, Comparison):
        if comparison.trajectories in found:
            pair = " with ".join(comparison.dialogue_ids)
            raise InputError(f"{path}:{number}: compares {pair} a second time; remove one of the lines")
        found[comparison.trajectories] = comparison
    return found


def _read(path: Path, kind: type[Judged]) -> Iterator[tuple[int, Judged]]:
    """Each line's number, from 1, and what it holds."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error}); name a run's file of judgments") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield number, kind.model_validate_json(line)
        except ValidationError as error:
            raise InputError(describe_validation(error, f"{path}:{number}")) from error
