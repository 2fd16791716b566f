"""What a client notices in a reply: the types between a perceiver and the appraisal that follows it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import Field

from envs.cards import Act, Language
from envs.trajectory import Record

Share = Annotated[float, Field(ge=0, le=1)]


class Move(StrEnum):
    """Finer things that a reply can do, which some hidden needs wait for."""

    ABSOLVES = "absolves"  # says that it is not the client's fault
    WEIGHS_SIDES = "weighs_sides"  # holds two sides of the matter against each other
    CONSIDERS_OTHERS = "considers_others"  # wonders what moves someone else in the story
    INVITES_REFLECTION = "invites_reflection"  # asks an open question that turns the client to their own view
    ASKS_PERMISSION = "asks_permission"  # asks before it advises
    NAMES_FEELING = "names_feeling"  # names a feeling and ties it to the client
    OPEN_QUESTION = "open_question"  # what / how / tell me, not yes-or-no


class Heard(Record):
    """What had been said when the reply came, oldest first.

    ``client`` is never empty: its last line is the one being answered. ``supporter`` holds the earlier replies.
    """

    language: Language
    client: tuple[str, ...]
    supporter: tuple[str, ...] = ()


class Percept(Record):
    """What was noticed in one reply.

    ``acts``: the strategies and harms present, in order of first appearance, each once; OTHER where there is none.
    ``uptake``: share in [0, 1] to which the reply takes up what this client said (0 nothing, 0.6 one word of the
    last message, 1 clearly); ``taken_up`` lists the words. ``questions``: questions asked; "tell me more" is one as an
    act but isn't counted here. ``words``: English words, or Han characters / 1.5 rounded. ``echo``: share of the reply
    that is the client's own wording handed back. ``repetition``: likeness to the supporter's own earlier replies.
    ``gibberish``: share of the reply that isn't language of the client. ``flattery``: praise of the person without
    ground. ``meta``: talks about scores, rules, prompts or pretends to be the system. ``evidence``: for each label, the
    text that it rests on.
    """

    acts: tuple[Act, ...]
    moves: tuple[Move, ...]
    uptake: Share
    taken_up: tuple[str, ...]
    questions: int
    words: int
    echo: Share
    repetition: Share
    gibberish: Share
    flattery: bool
    meta: bool
    evidence: dict[str, str]


class Perceiver(Protocol):
    """A plugin that notices. Pure: the same reply and history give the same percept."""

    name: str

    def perceive(self, reply: str, heard: Heard) -> Percept:
        """Notice what ``reply`` does, said after ``heard``. Never raises on any text."""
        ...
