"""Follow-up likelihood as reward (FLR, arXiv 2409.13948): after a good reply a model expects good answers.

For each reply: the mean log-probability of the positive follow-ups less that of the negative ones, in nats, under a
language model that reads the talk up to and with the reply. Unlike the paper, the difference is squeezed into [0, 1] by
a logistic curve, because every score here lies there; a group still ranks its replies by it.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from envs.cards import Language, Text
from envs.errors import InputError, describe_validation
from envs.models.fence import defuse, without_thought
from envs.models.likelihood import Likelihood
from envs.models.model_client import ModelError
from envs.trajectory import Message, Record, Score, Speaker, Trajectory
from rewards.per_reply import per_reply

PATH = Path(__file__).resolve().parent.parent / "configs" / "prompts" / "follow_ups.yaml"
SCALE = 5.0  # nats: a difference of this size comes to 0.73

Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


class FollowUps(Record):
    """What a client may say next, and how the talk names who speaks, in one language."""

    speakers: dict[Speaker, Text]
    positive: Texts
    negative: Texts


@cache
def follow_ups(language: Language) -> FollowUps:
    """The follow-ups of ``language``. Raises InputError naming the file."""
    try:
        return FollowUps.model_validate(yaml.safe_load(PATH.read_text(encoding="utf-8"))[language])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{PATH}: has no follow-ups that can be read for {language}: {error}") from error
    except ValidationError as error:
        raise InputError(describe_validation(error, f"{PATH}: {language}")) from error


class FollowUpReward:
    """How much likelier good follow-ups are than bad ones, mean over the replies. ``scale`` in nats."""

    name = "follow-up"

    def __init__(self, likelihood: Likelihood, language: Language, scale: float = SCALE) -> None:
        if scale <= 0:
            raise InputError("the follow-up reward's scale must lie above 0; it is in nats")
        self._likelihood, self._scale, self._texts = likelihood, scale, follow_ups(language)

    async def score(self, trajectory: Trajectory) -> Score:
        """The score of one dialogue; None when it failed, or the model told no likelihood for some reply."""
        said = trajectory.messages
        # The opening, then a reply and the client's answer for each turn.
        heard = [said[: 2 * turn + 2] for turn in range(len(trajectory.turns))]
        nats = await asyncio.gather(*(self._difference(messages) for messages in heard))
        values = [None if gain is None else _logistic(gain / self._scale) for gain in nats]
        told = " ".join("none" if gain is None else f"{gain:+.2f}" for gain in nats)
        return per_reply(self.name, trajectory, values, f"nats of good over bad follow-ups: {told}")

    async def _difference(self, messages: Sequence[Message]) -> float | None:
        names = self._texts.speakers
        # One line each, so that a reply can't begin a line in the client's name.
        lines = [f"{names[said.speaker]}: {' '.join(defuse(without_thought(said.text)).split())}" for said in messages]
        prompt = "\n".join([*lines, f"{names['client']}:"])
        try:
            good = [await self._likelihood.logprob(prompt, f" {text}") for text in self._texts.positive]
            bad = [await self._likelihood.logprob(prompt, f" {text}") for text in self._texts.negative]
        except ModelError:
            return None
        return statistics.fmean(good) - statistics.fmean(bad)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
