"""Judges with scripted models, and dialogues for them to judge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dialogues import card, trajectory

from envs.cards import Language
from envs.models.model_client import Answer, Ask, ModelError
from envs.trajectory import Generation, Stop, Trajectory
from rewards.judge import Judge
from rewards.judgments import Judgment
from rewards.rubric import Rubric, load_rubric

WHO = card("en-judged")
REPLIES = ("That letter came without a word of warning.", "You drove that route for nineteen years.")
KARDIA, MENTALALIGN = load_rubric("kardia"), load_rubric("mentalalign")


def rubric(scope: str = "dialogue", weights: Sequence[float] = (1, 3), languages: Sequence[str] = ("en",)) -> Rubric:
    """A rubric of the axes ``warmth`` and ``sense``, 1 to 5."""
    axes = [
        {
            "name": name,
            "weight": weight,
            "question": {language: f"How much {name}?" for language in languages},
            "levels": {n: {language: f"{name} {n} {language}" for language in languages} for n in range(1, 6)},
        }
        for name, weight in zip(("warmth", "sense"), weights, strict=True)
    ]
    data = {"name": "two", "title": "Two axes", "scope": scope, "languages": languages, "scale": {"low": 1, "high": 5}}
    return Rubric.model_validate(data | {"sources": ["made for tests"], "axes": axes})


def dialogue(*replies: str, seed: int = 0, **changes: Any) -> Trajectory:
    """A dialogue with these replies of the supporter."""
    said = replies or REPLIES
    emotions = [40.0 + 2 * turn for turn in range(1, len(said) + 1)]
    talk = trajectory(WHO, seed, emotions, [Generation(text=text) for text in said])
    return talk.model_copy(update=changes)


FAILED = dialogue().model_copy(update={"stop": Stop.ERROR, "error": "RunError: the server is gone"})


def rating(level: Any = 4, evidence: Any = REPLIES[0], **changes: Any) -> dict[str, Any]:
    """The verdict on one axis as a model answers it."""
    return {"evidence": evidence, "reason": "It takes up what was told.", "level": level} | changes


def rated(warmth: Any = 4, sense: Any = 2, evidence: str = REPLIES[0], **changes: Any) -> str:
    """A verdict on both axes as a model answers it."""
    axes = {"warmth": rating(warmth, evidence), "sense": rating(sense, evidence)}
    return json.dumps(axes | changes, ensure_ascii=False)


def chosen(warmth: Any, sense: Any, first: str, second: str) -> str:
    """A comparison as a model answers it."""
    texts = {"first": first, "second": second, "reason": "One of them stays with the client."}
    return json.dumps({"warmth": texts | {"better": warmth}, "sense": texts | {"better": sense}}, ensure_ascii=False)


class Says:
    """A model that answers by a function of the request, and keeps what it was asked."""

    def __init__(self, answer: Callable[[Ask], str], model: str = "says") -> None:
        self.model, self._answer = model, answer
        self.asked: list[Ask] = []

    async def ask(self, ask: Ask) -> Answer:
        """The function's text; ModelError where it is None."""
        self.asked.append(ask)
        text = self._answer(ask)
        if text is None:
            raise ModelError("the server is gone")
        return Answer(text=text, model=self.model)


def in_turn(*texts: str | None, model: str = "says") -> Says:
    """A model that says these texts one after another, then the last one again."""
    left = list(texts)
    return Says(lambda ask: left.pop(0) if len(left) > 1 else left[0], model)  # type: ignore[return-value]


def judged(judge: Judge, talk: Trajectory, *models: Any, language: Language = "en") -> Judgment:
    """The judgment of one dialogue."""
    return asyncio.run(judge.judge(talk, models, language))


def levels(judgment: Judgment, verdict: int = 0) -> Mapping[str, float | None]:
    """The levels of one verdict, by axis."""
    return {axis.axis: axis.level for axis in judgment.verdicts[verdict].axes}
