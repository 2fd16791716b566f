"""A judge: language models that rate a dialogue, or compare two, by a rubric.

Each model is asked once per sample about the dialogue, or about each reply where the rubric is about a turn. Two
dialogues are shown in both orders, since judges favour a place (arXiv 2306.05685). An answer that can't be used is
asked for again, a bounded number of times; what is still missing is None, under its cause.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from envs.cards import Language
from envs.errors import InputError
from envs.hashing import derived_seed
from envs.models.answers import BadAnswer
from envs.models.calls import Call, calls_until_usable
from envs.models.fence import nonce
from envs.models.model_client import Ask, ChatMessage, ModelClient, ModelError
from envs.trajectory import Message, Stop, Trajectory
from rewards.judge_prompts import Mode, as_shown, pair_prompt, prompt_hash, rating_prompt, words
from rewards.judgments import (
    Causes,
    Comparison,
    JudgeRules,
    Judgment,
    Opinion,
    PairOpinion,
    Verdict,
    axis_verdicts,
    digest_of,
    pair_verdicts,
    recorded_models,
    total_causes,
)
from rewards.rubric import Rubric
from rewards.verdicts import Cause, PairReading, Reading, pair_schema, rating_schema, read_pair, read_rating

AnyReading = TypeVar("AnyReading", Reading, PairReading)
DEFAULT_RULES = JudgeRules()


@dataclass(frozen=True)
class _Question(Generic[AnyReading]):
    """One prompt and how its answers are read. ``blank``: a reading of an axis without a verdict, for a cause."""

    name: str
    language: Language
    schema: dict[str, Any]
    make_prompt: Callable[[Sequence[str]], tuple[ChatMessage, ...]]  # from what was wrong before to the messages
    read: Callable[[str], dict[str, AnyReading]]
    blank: Callable[[Cause], AnyReading]


class Judge:
    """Rates by one rubric under one set of rules. It has no model and no state: the same answers, the same verdict."""

    def __init__(self, rubric: Rubric, rules: JudgeRules = DEFAULT_RULES) -> None:
        self.rubric, self.rules = rubric, rules

    def prompt_hash(self, language: Language, mode: Mode = "rate") -> str:
        """The hash that a certificate names for this judge's prompt in ``language``."""
        return prompt_hash(mode, language)

    async def judge(self, trajectory: Trajectory, models: Sequence[ModelClient], language: Language) -> Judgment:
        """Rate a dialogue. Raises InputError for no model, or two of one name; a model that fails is data."""
        _check_names(models)
        digest, unasked, units = digest_of(trajectory), self._unasked(language, trajectory), []
        if unasked is None:
            units = range(len(trajectory.turns)) if self.rubric.scope == "turn" else [None]
        fence = nonce(self.rules.seed, digest)
        questions = {turn: self._rating(trajectory.messages, turn, fence, language) for turn in units}
        opinions = await asyncio.gather(
            *(
                self._opinion(questions[turn], model, turn, sample)
                for turn in units
                for model in models
                for sample in range(self.rules.samples)
            )
        )
        by_turn = {turn: [one for one in opinions if one.turn == turn] for turn in units}
        return Judgment(
            dialogue_id=trajectory.dialogue_id,
            trajectory=digest,
            opinions=tuple(opinions),
            verdicts=tuple(Verdict(turn=turn, axes=axis_verdicts(self.rubric, by_turn[turn])) for turn in units),
            unasked=unasked,
            causes=total_causes(opinions),
            **self._bound_to(language, "rate", models),
        )

    async def compare(
        self, first: Trajectory, second: Trajectory, models: Sequence[ModelClient], language: Language
    ) -> Comparison:
        """Say which of two dialogues of one card is better. Raises InputError as ``judge``, and for a rubric about
        single replies; ValueError when the dialogues are of different cards."""
        _check_names(models)
        if first.card_hash != second.card_hash:
            raise ValueError(f"{first.dialogue_id} and {second.dialogue_id} are of different cards")
        if self.rubric.scope != "dialogue":
            raise InputError(f"rubric {self.rubric.name}: rates single replies, and only whole dialogues are compared")
        unasked = self._unasked(language, first, second)
        digests = (digest_of(first), digest_of(second))
        talks = (first.messages, second.messages)
        fence = nonce(self.rules.seed, *digests)
        orders = [] if unasked else [False, True]
        questions = {swap: self._pairing((talks[swap], talks[not swap]), fence, language) for swap in orders}
        opinions = await asyncio.gather(
            *(
                self._pair_opinion(questions[swap], model, swap, sample)
                for model in models
                for sample in range(self.rules.samples)
                for swap in orders
            )
        )
        return Comparison(
            dialogue_ids=(first.dialogue_id, second.dialogue_id),
            trajectories=digests,
            opinions=tuple(opinions),
            verdicts=() if unasked else pair_verdicts(self.rubric, opinions),
            unasked=unasked,
            causes=total_causes(opinions),
            **self._bound_to(language, "compare", models),
        )

    def _bound_to(self, language: Language, mode: Mode, models: Sequence[ModelClient]) -> dict[str, Any]:
        return {
            "rubric": self.rubric.name,
            "rubric_hash": self.rubric.hash,
            "language": language,
            "prompt_hash": self.prompt_hash(language, mode),
            "rules": self.rules,
            "models": tuple(model.model for model in models),
        }

    def _unasked(self, language: Language, *trajectories: Trajectory) -> Cause | None:
        if language not in self.rubric.languages:
            return Cause.UNSUPPORTED_LANGUAGE
        if any(one.stop is Stop.ERROR for one in trajectories):
            return Cause.FAILED_DIALOGUE
        return None if all(one.turns for one in trajectories) else Cause.NOTHING_SAID

    def _rating(
        self, messages: Sequence[Message], turn: int | None, fence: str, language: Language
    ) -> _Question[Reading]:
        # The opening, then a reply and the client's answer for each turn.
        shown = messages if turn is None else messages[: 2 * turn + 2]
        judged = shown if turn is None else shown[-1:]
        replies = _replies(judged)

        def make_prompt(problems: Sequence[str]) -> tuple[ChatMessage, ...]:
            return rating_prompt(self.rubric, language, shown, fence, self._longest_quote, problems)

        count = len(replies) if self.rules.evidence == "number" else None
        schema = rating_schema(self.rubric, self.rules.longest_quote, self.rules.longest_reason, count)

        def read(raw: str) -> dict[str, Reading]:
            return read_rating(raw, self.rubric, replies, self.rules.evidence)

        return _Question("rate", language, schema, make_prompt, read, _no_level)

    @property
    def _longest_quote(self) -> int | None:
        """Characters of a quote; None where a reply is named by its number."""
        return None if self.rules.evidence == "number" else self.rules.longest_quote

    def _pairing(
        self, talks: tuple[Sequence[Message], Sequence[Message]], fence: str, language: Language
    ) -> _Question[PairReading]:
        replies = _replies(talks[0]), _replies(talks[1])

        def make_prompt(problems: Sequence[str]) -> tuple[ChatMessage, ...]:
            return pair_prompt(self.rubric, language, talks, fence, self._longest_quote, problems)

        counts = (len(replies[0]), len(replies[1])) if self.rules.evidence == "number" else None
        schema = pair_schema(self.rubric, self.rules.longest_quote, self.rules.longest_reason, counts)

        def read(raw: str) -> dict[str, PairReading]:
            return read_pair(raw, self.rubric, replies, self.rules.evidence)

        return _Question("compare", language, schema, make_prompt, read, _no_side)

    async def _opinion(
        self, question: _Question[Reading], model: ModelClient, turn: int | None, sample: int
    ) -> Opinion:
        seed = derived_seed(self.rules.seed, "judge", turn, sample)
        calls, axes, causes = await self._asked(question, model, seed)
        return Opinion(model=model.model, turn=turn, sample=sample, calls=calls, axes=axes, causes=causes)

    async def _pair_opinion(
        self, question: _Question[PairReading], model: ModelClient, swapped: bool, sample: int
    ) -> PairOpinion:
        seed = derived_seed(self.rules.seed, "compare", sample)
        calls, axes, causes = await self._asked(question, model, seed)
        return PairOpinion(model=model.model, swapped=swapped, sample=sample, calls=calls, axes=axes, causes=causes)

    async def _asked(
        self, question: _Question[AnyReading], model: ModelClient, seed: int
    ) -> tuple[tuple[Call, ...], dict[str, AnyReading], Causes]:
        """Every call, the first usable reading of each axis (else the last cause), and the causes' counts."""
        calls: list[Call] = []
        axes: dict[str, AnyReading] = {}
        wrong: Mapping[str, Cause] = {}
        causes: Counter[Cause] = Counter()

        def make_ask(attempt: int, rejected: str | None) -> Ask:
            return Ask(
                messages=question.make_prompt(_told(wrong, question.language)),
                answer_schema=question.schema,
                schema_name=question.name,
                seed=seed,
                attempt=attempt,
                temperature=self.rules.temperature,
                max_tokens=self.rules.max_tokens,
            )

        def fault(raw: str) -> str | None:
            nonlocal wrong
            try:
                readings = question.read(raw)
                flaws = {axis: reading.cause for axis, reading in readings.items() if reading.cause}
            except BadAnswer as error:
                cause = Cause(error.word)
                readings, flaws = self._all(question.blank(cause)), {"": cause}
            causes.update(flaws.values())
            axes.update({axis: new for axis, new in readings.items() if axis not in axes or axes[axis].cause})
            missing = any(reading.cause for reading in axes.values())
            wrong = {axis: cause for axis, cause in flaws.items() if missing and (not axis or axes[axis].cause)}
            return "; ".join(f"{axis}: {cause.value}" if axis else cause.value for axis, cause in wrong.items()) or None

        try:
            async for call in calls_until_usable(model, self.rules.attempts, make_ask, fault):
                calls.append(call)
        except ModelError:
            causes[Cause.NO_ANSWER] += 1
            axes = axes or self._all(question.blank(Cause.NO_ANSWER))
        return tuple(calls), axes, dict(sorted(causes.items()))

    def _all(self, reading: AnyReading) -> dict[str, AnyReading]:
        return {axis.name: reading for axis in self.rubric.axes}


async def replayed(judgment: Judgment, trajectory: Trajectory, rubric: Rubric) -> Judgment:
    """The judgment made again from its recorded answers, without a model: equal to ``judgment``, or it was changed."""
    judge = Judge(rubric, judgment.rules)
    return await judge.judge(trajectory, recorded_models(judgment), judgment.language)


async def compared_again(comparison: Comparison, first: Trajectory, second: Trajectory, rubric: Rubric) -> Comparison:
    """The same for a comparison."""
    judge = Judge(rubric, comparison.rules)
    return await judge.compare(first, second, recorded_models(comparison), comparison.language)


def _no_level(cause: Cause) -> Reading:
    return Reading(cause=cause)


def _no_side(cause: Cause) -> PairReading:
    return PairReading(cause=cause)


def _replies(messages: Sequence[Message]) -> list[str]:
    return [as_shown(message) for message in messages if message.speaker == "supporter"]


def _told(wrong: Mapping[str, Cause], language: Language) -> list[str]:
    """What was wrong with the answer before, in the prompt's language and our own words."""
    own = words(language)
    return [f"{axis or own.answer}: {own.causes[cause]}" for axis, cause in wrong.items()]


def _check_names(models: Sequence[ModelClient]) -> None:
    names = [model.model for model in models]
    if not names:
        raise InputError("a judge needs a model; name one")
    if len(set(names)) < len(names):
        raise InputError("two models of a judge bear one name; ask one of them for several samples in their place")
