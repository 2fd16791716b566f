"""The work that every variant does: what each simulated client says, how long it takes to say it, and what came of it.

A client's answers take log-normal time, fixed for each dialogue and turn by a seed, so that every variant waits for the
same answers.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log, sqrt
from random import Random
from statistics import NormalDist

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec, load_spec
from envs.trajectory import ClientTurn, Message

GROUP = 8  # dialogues of one card, which share their opening
Z99 = NormalDist().inv_cdf(0.99)
SAID = (
    "I don't know, it just keeps going round in my head and I can't get it to stop for a minute.",
    "Maybe. My sister said something like that too, and it didn't change how the whole thing felt.",
    "The worst part is the evenings, when everyone has gone and there is nothing left to do about it.",
    "I never told anyone that before. It sounds smaller when I say it out loud than it does at night.",
    "Yes, and then I get angry with myself, because other people have it so much harder than I do.",
    "He didn't even look at me when he said it, he just went on with what he was doing at the desk.",
    "I thought it would be over by now. It has been weeks, and I still check the letter every morning.",
    "You could be right. I suppose I wanted somebody to notice that I had tried, that is all of it.",
)


@dataclass(frozen=True)
class LogNormal:
    """A log-normal time: exp of a normal number of mean ``mu`` and deviation ``sigma``."""

    mu: float
    sigma: float

    @classmethod
    def of(cls, mean: float, p99: float) -> LogNormal:
        """The one with this mean and 99th percentile, in seconds.

        mean = exp(mu + sigma^2 / 2) and p99 = exp(mu + z sigma), so sigma = z - sqrt(z^2 - 2 ln(p99 / mean)): of the
        two solutions the narrower. Raises ValueError where there is none.
        """
        inside = Z99**2 - 2 * log(p99 / mean)
        if p99 <= mean or inside < 0:
            raise ValueError(f"no log-normal time has a mean of {mean:g} s and a 99th percentile of {p99:g} s")
        sigma = Z99 - sqrt(inside)
        return cls(log(mean) - sigma**2 / 2, sigma)

    @property
    def mean(self) -> float:
        """Seconds."""
        return exp(self.mu + self.sigma**2 / 2)

    @property
    def p99(self) -> float:
        """Seconds."""
        return exp(self.mu + Z99 * self.sigma)

    def seconds(self, seed: int, dialogue: int, turn: int) -> float:
        """How long the answer to one turn takes; the same for the same three numbers."""
        return Random(f"{seed}/{dialogue}/{turn}").lognormvariate(self.mu, self.sigma)


@dataclass(frozen=True)
class Talk:
    """One dialogue's client: its opening, then an answer and a wait in seconds for each turn, (T,)."""

    number: int
    card: PersonaCard
    opening: str
    answers: tuple[str, ...]
    waits: tuple[float, ...]


def talks(
    cards: Sequence[PersonaCard], count: int, turns: int, latency: LogNormal | None, seed: int, group: int = GROUP
) -> list[Talk]:
    """``count`` dialogues of ``turns`` turns, ``group`` of each card in a row; None: clients that answer at once."""
    made = []
    for number in range(count):
        card = cards[number // group % len(cards)]
        answers = tuple(SAID[(number + turn) % len(SAID)] for turn in range(turns))
        waits = tuple(latency.seconds(seed, number, turn) if latency else 0.0 for turn in range(turns))
        made.append(Talk(number, card, card.script.opening, answers, waits))
    return made


@cache
def spec_of(turns: int) -> ClientSpec:
    """Rules under which a dialogue has exactly ``turns`` turns, since the stub never stops."""
    return load_spec("appraisal-v1").model_copy(update={"max_turns": turns})


class StubClient:
    """Says what its talk says, after the time that it takes, whatever it hears."""

    def __init__(self, talk: Talk) -> None:
        self._talk, self._turn = talk, 0

    async def open(self) -> ClientTurn:
        """The opening, at once."""
        return _turn(self._talk.opening)

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """The next answer, late."""
        turn, self._turn = self._turn, self._turn + 1
        await asyncio.sleep(self._talk.waits[turn])
        return _turn(self._talk.answers[turn])


def _turn(text: str) -> ClientTurn:
    return ClientTurn(text=text, emotion=50, written_change=0, change=0)


@dataclass(frozen=True)
class Played:
    """What one variant did with some talks. ``seconds`` of wall clock; ``waited``: of all clients, added up.

    ``prefix_hits``, ``prefix_queries``: tokens by vLLM's counters; ``prefix_ideal``: the hits that there could have
    been; None where the variant sends text or another prompt. ``others``: the share of all cores that other
    processes used meanwhile.
    """

    dialogues: int
    turns: int
    seconds: float
    waited: float
    prefix_hits: int = 0
    prefix_queries: int = 0
    prefix_ideal: int | None = None
    others: float | None = None

    @property
    def turns_per_second(self) -> float:
        """Turns of all dialogues over the wall clock."""
        return self.turns / self.seconds


def spread(values: Sequence[float]) -> dict[str, float | int] | None:
    """Median and range of repeated measurements; None of none."""
    if not values:
        return None
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}


def hidden(played: Played, without: float) -> float | None:
    """The share of the clients' waiting that did not add to the wall clock.

    ``without``: seconds of the same variant with clients that answer at once. None where nobody waited.
    """
    return 1 - max(played.seconds - without, 0.0) / played.waited if played.waited else None
