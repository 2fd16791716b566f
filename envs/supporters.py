"""Scripted supporters: fixed replies for probing a client, a good one as yardstick, and one that mixes good and bad.

They see the messages and nothing of the card: what they take up is read from what the client just said. Their sentences
stand in ``configs/supporters/<language>.yaml``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from envs.cards import Language
from envs.errors import InputError
from envs.hashing import derived_seed
from envs.trajectory import Generation, Message

BANKS_DIR = Path(__file__).resolve().parent.parent / "configs" / "supporters"

# What a good supporter does, turn by turn: first stay with the person, then widen, then at last a step if wanted.
PLAN = (
    ("reflection", "question"),
    ("restatement", "invites_reflection"),
    ("reflection", "affirmation"),
    ("absolves", "question"),
    ("considers_others", "reflection"),
    ("weighs_sides", "affirmation"),
    ("suggestion", "reflection"),
    ("affirmation", "invites_reflection"),
)
# How often the mixing supporter uses a good sentence at all, and how often it adds a second sentence.
GOOD_SHARE = 0.45
SECOND_SHARE = 0.4

DETERMINERS = {"my": "your", "our": "your", "the": "the", "a": "the", "an": "the", "this": "the", "her": "her"}
DETERMINERS |= {"his": "his", "their": "their"}


class FixedReplies:
    """Says the given replies in order, from the start again when they run out; the same whatever the client says."""

    def __init__(self, replies: Sequence[str]) -> None:
        if not replies:
            raise InputError("a list of replies needs at least one; an empty reply is written as an empty string")
        self._replies = list(replies)

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """The next reply."""
        turn = sum(message.speaker == "supporter" for message in messages)
        return Generation(text=self._replies[turn % len(self._replies)])


class GoodSupporter:
    """Stays with what the client says, in varied words; the yardstick of what a client can reach."""

    def __init__(self, language: Language, seed: int) -> None:
        self._language: Language = language
        self._seed = seed
        self._good = bank(language)["good"]
        self._used: set[str] = set()

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """One or two sentences that take up the client's last message."""
        turn = sum(message.speaker == "supporter" for message in messages)
        chance = random.Random(derived_seed(self._seed, turn))
        subjects = topics(messages, self._language)
        sentences = []
        for position, act in enumerate(PLAN[turn % len(PLAN)]):
            unused = [line for line in self._good[act] if line not in self._used] or self._good[act]
            line = chance.choice(unused)
            self._used.add(line)
            sentences.append(line.format(topic=subjects[position % len(subjects)]))
        return Generation(text=_joint(self._language).join(sentences))


class MixingSupporter:
    """All acts, good and bad, at random: what the bootstrap corpus is spoken by."""

    def __init__(self, language: Language, seed: int) -> None:
        self._language: Language = language
        self._seed, self._bank = seed, bank(language)

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """One or two sentences of random acts; a good one takes up what the client said, where it can."""
        chance = random.Random(derived_seed(self._seed, len(messages), messages[-1].text))
        subjects = everyday_topics(messages) if self._language == "en" else topics(messages, self._language)
        count = 2 if chance.random() < SECOND_SHARE else 1
        group = self._bank["good" if chance.random() < GOOD_SHARE else "bad"]
        sentences = []
        for act in chance.sample(sorted(group), count):
            sentences.append(chance.choice(group[act]).format(topic=chance.choice(subjects)))
        return Generation(text=_joint(self._language).join(sentences))


def _joint(language: Language) -> str:
    return " " if language == "en" else ""


@cache
def bank(language: Language) -> dict[str, dict[str, list[str]]]:
    """The sentences of a language: {"good" | "bad": {act: [sentence]}}. Raises InputError when there is no file."""
    return {group: _file(language)[group] for group in ("good", "bad")}


@cache
def _file(language: Language) -> dict[str, Any]:
    path = BANKS_DIR / f"{language}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is no bank of supporter sentences: {error}") from error
    return dict(data)


def topics(messages: Sequence[Message], language: Language) -> list[str]:
    """What could be taken up, newest message first: noun phrases as "your sister" (English), short quotes (Chinese)."""
    find = _noun_phrases if language == "en" else _clauses
    said = [message.text for message in messages if message.speaker == "client"]
    found = [topic for text in reversed(said[-3:]) for topic in reversed(find(text))]
    return list(dict.fromkeys(found))[:4] or (["what you told me"] if language == "en" else ["你说的这件事"])


def everyday_topics(messages: Sequence[Message]) -> list[str]:
    """Everyday nouns of the newest of the client's last messages that has any, as "your sister" or "the letter"."""
    for message in reversed([message for message in messages if message.speaker == "client"][-3:]):
        text = message.text
        if found := [f"{_turned(text, start)} {text[start:end].lower()}" for start, end in everyday_spans(text)]:
            return list(dict.fromkeys(found))
    return ["what you told me"]


def everyday_spans(text: str) -> list[tuple[int, int]]:
    """Where everyday nouns stand in English text: (start, end)."""
    return [match.span() for match in re.finditer(r"[A-Za-z]+", text) if match.group().lower() in everyday_nouns()]


def _turned(text: str, start: int) -> str:
    return "your" if re.search(r"\b(my|our)\s$", text[:start], re.IGNORECASE) else "the"


@cache
def everyday_nouns() -> tuple[str, ...]:
    """The everyday nouns of English, as the bank lists them."""
    return tuple(_file("en")["everyday"].split())


@cache
def words(kind: str) -> frozenset[str]:
    """One of English's word lists in the bank: "vague" nouns, or the words that are "closing" a noun phrase."""
    return frozenset(_file("en")[kind].split())


def _noun_phrases(text: str) -> list[str]:
    return [f"{DETERMINERS[determiner.lower()]} {text[start:end]}" for determiner, start, end in noun_spans(text)]


def noun_spans(text: str) -> list[tuple[str, int, int]]:
    """Nouns behind a determiner in English text, told by what follows them: (determiner, start, end) of the noun."""
    tokens = [(m.group(), m.start(), m.end()) for m in re.finditer(r"[A-Za-z]+(?:['’][a-z]+)?|[^\sA-Za-z]", text)]
    found = []
    for index, (determiner, _, _) in enumerate(tokens[:-1]):
        noun, start, end = tokens[index + 1]
        follower = tokens[index + 2][0].lower() if index + 2 < len(tokens) else "."
        if determiner.lower() not in DETERMINERS or not noun.isalpha() or len(noun) < 3:
            continue
        if noun.lower() in words("vague") | words("closing"):
            continue
        if noun in everyday_nouns() or follower in words("closing") or not follower[0].isalpha():
            found.append((determiner, start, end))
    return found


def _clauses(text: str) -> list[str]:
    return [clause for clause in re.split(r"[，。！？；：、“”—…\s]+", text) if 4 <= len(clause) <= 12]
