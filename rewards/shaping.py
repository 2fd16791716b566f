"""Shaping rewards: replies of a sensible length that don't repeat themselves. Pure over the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from envs.perception.text import TOKEN, clean, count_words
from envs.trajectory import Record, Score, Trajectory
from rewards.per_reply import per_reply

Share = Annotated[float, Field(ge=0, le=1)]


class LengthBounds(Record):
    """Words of a reply (of Chinese, characters / 1.5). From ``low`` to ``high`` it scores 1, down to 0 at ``least`` and
    at ``most``, in a straight line."""

    least: Annotated[int, Field(ge=0)] = 3
    low: int = 12
    high: int = 60
    most: int = 150

    @model_validator(mode="after")
    def _in_order(self) -> LengthBounds:
        if not self.least < self.low <= self.high < self.most:
            raise ValueError("the bounds must rise: least < low <= high < most")
        return self

    def score(self, words: int) -> float:
        """The share in [0, 1] that a reply of so many words is worth."""
        return _between(words, self.least, self.low) if words < self.low else _between(words, self.most, self.high)


class RepetitionBounds(Record):
    """Runs of ``size`` words (or Han characters) that were said before, in the reply or an earlier one of the talk, as
    a share of the reply's runs: up to ``free`` it scores 1, down to 0 at ``full``."""

    size: Annotated[int, Field(ge=1)] = 4
    free: Share = 0.1
    full: Share = 0.6

    @model_validator(mode="after")
    def _in_order(self) -> RepetitionBounds:
        if not self.free < self.full:
            raise ValueError("the bounds must rise: free < full")
        return self

    def score(self, repeated: float) -> float:
        """The share in [0, 1] that a reply with this share of repeated runs is worth."""
        return _between(repeated, self.full, self.free)


def _between(value: float, nought: float, one: float) -> float:
    """0 at ``nought``, 1 at ``one``, a straight line between, and no further."""
    return min(1.0, max(0.0, (value - nought) / (one - nought)))


class LengthReward:
    """The mean score of the replies' lengths, as the client hears them."""

    name = "length"

    def __init__(self, bounds: LengthBounds | None = None) -> None:
        self._bounds = bounds or LengthBounds()

    async def score(self, trajectory: Trajectory) -> Score:
        """The score of one dialogue; None when it failed."""
        words = [count_words(turn.supporter.text) for turn in trajectory.turns]
        told = f"words of each reply: {' '.join(map(str, words))}"
        return per_reply(self.name, trajectory, [self._bounds.score(count) for count in words], told)


class RepetitionReward:
    """The mean score of the replies' repetition, of themselves and of earlier replies."""

    name = "repetition"

    def __init__(self, bounds: RepetitionBounds | None = None) -> None:
        self._bounds = bounds or RepetitionBounds()

    async def score(self, trajectory: Trajectory) -> Score:
        """The score of one dialogue; None when it failed."""
        shares = repeated_shares([turn.supporter.text for turn in trajectory.turns], self._bounds.size)
        told = f"repeated share of each reply: {' '.join(f'{share:.2f}' for share in shares)}"
        return per_reply(self.name, trajectory, [self._bounds.score(share) for share in shares], told)


def repeated_shares(replies: Sequence[str], size: int) -> list[float]:
    """For each reply the share of its runs of ``size`` words that stood before. A shorter reply is one run."""
    seen: set[tuple[str, ...]] = set()
    shares = []
    for reply in replies:
        words = TOKEN.findall(clean(reply).lower())
        runs = [tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))]
        repeated = 0
        for run in runs:
            repeated += run in seen
            seen.add(run)
        shares.append(repeated / len(runs))
    return shares
