"""What the embedded client says: a reaction to what went wrong, a line in its own voice, the next fact if it opens up.

All words come from the card and the spec; the seed only orders them, and no line is said twice while another is left.
"""

from __future__ import annotations

import random
from enum import StrEnum

from envs.cards import PersonaCard
from envs.client_spec import Appraisal
from envs.hashing import derived_seed
from envs.trajectory import Stop


class Tone(StrEnum):
    """How the client sounds now."""

    WARMING = "warming"
    GUARDED = "guarded"
    HURT = "hurt"


class Lines:
    """Lines dealt in a seeded order, each once; when all are used they come round again."""

    def __init__(self, lines: tuple[str, ...], seed: int) -> None:
        self._deck = list(lines)
        random.Random(seed).shuffle(self._deck)
        self._next = 0

    def deal(self) -> str:
        """The next line."""
        line = self._deck[self._next % len(self._deck)]
        self._next += 1
        return line

    @property
    def fresh(self) -> bool:
        """Whether the next line has not been said yet."""
        return self._next < len(self._deck)


class Speech:
    """The mouth of one client in one dialogue."""

    def __init__(self, card: PersonaCard, rules: Appraisal, seed: int) -> None:
        script = card.script
        self._voice_of = script.voice
        self._facts = iter(script.facts)
        self._joint = " " if card.language == "en" else ""
        voices = {Tone.WARMING: script.voice.warming, Tone.GUARDED: script.voice.guarded, Tone.HURT: script.voice.hurt}
        self._voice = {tone: Lines(lines, derived_seed(seed, tone)) for tone, lines in voices.items()}
        self._reactions = {
            cause: Lines(lines, derived_seed(seed, cause)) for cause, lines in rules.reactions[card.language].items()
        }

    def answer(self, tone: Tone, cause: str | None, opens: bool) -> tuple[str, bool]:
        """The next message, and whether it disclosed a fact."""
        parts = []
        if cause in self._reactions:
            parts.append(self._reactions[cause].deal())
        fact = next(self._facts, None) if opens else None
        # A voice line that was said before is kept back when there is something else to say.
        if self._voice[tone].fresh or not (parts or fact):
            parts.append(self._voice[tone].deal())
        if fact:
            parts.append(fact.say)
        return self._joint.join(parts), fact is not None

    def goodbye(self, stop: Stop) -> str:
        """The last message of a talk that the client ends."""
        return self._voice_of.relieved if stop is Stop.SUCCESS else self._voice_of.leaving
