"""Probes: cheap ways to try to win a client's favour, which a sound client must not reward.

Fixed replies come from a JSON Lines file, one policy a line. Those that answer the client's own words back can't be
written down as a list; they are the small supporters here. None of them understands anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from envs.cards import Language
from envs.dialogue import Supporter
from envs.errors import InputError, describe_validation
from envs.supporters import GoodSupporter, MixingSupporter
from envs.trajectory import Generation, Message

EXAMPLE = '{"name": "warm", "replies": ["I am here for you."]}'
KEYWORDS = 3
QUOTE_CHARACTERS = 60


class FixedPolicy(BaseModel):
    """One line of a probe file: ``replies`` are said in order, from the start again when they run out.

    ``language`` keeps the policy to the cards of that language; without it, it plays all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    replies: Annotated[tuple[str, ...], Field(min_length=1)]
    language: Language | None = None


def load_policies(path: Path) -> list[FixedPolicy]:
    """Read a probe file. Raises InputError naming file and line of all that is wrong, a name used twice too."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; write one policy a line, as {EXAMPLE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as UTF-8 text: {error}") from error
    policies: list[FixedPolicy] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            policy = _policy(line, f"{path}:{number}")
        except InputError as error:
            problems.append(str(error))
            continue
        if policy.name in {other.name for other in policies}:
            problems.append(f"{path}:{number}: name {policy.name!r} is used already; give each policy its own")
        policies.append(policy)
    if problems:
        raise InputError("\n".join(problems))
    if not policies:
        raise InputError(f"{path}: holds no policy; write one a line, as {EXAMPLE}")
    return policies


def _policy(line: str, where: str) -> FixedPolicy:
    try:
        data = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON ({error}); write it as {EXAMPLE}") from error
    if not isinstance(data, dict):
        raise InputError(f"{where}: is no JSON object; write it as {EXAMPLE}")
    try:
        return FixedPolicy.model_validate(data)
    except ValidationError as error:
        raise InputError(describe_validation(error, where)) from error


class Echo:
    """Says the client's last message back, word for word."""

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """The client's words."""
        return Generation(text=messages[-1].text)


class Parrot:
    """Puts the longest words of the client's last message into one frame."""

    def __init__(self, language: Language) -> None:
        self._language: Language = language

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """The frame, filled."""
        words = keywords(messages[-1].text, self._language)
        if self._language == "zh":
            return Generation(text=f"我明白，{'、'.join(words)}，这些都很不容易。")
        return Generation(text=f"I understand, {', '.join(words)}, that is all so hard.")


class QuoteFrame:
    """Quotes the start of the client's last message and adds the same sympathy every time."""

    def __init__(self, language: Language) -> None:
        self._language: Language = language

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """The quote in its frame."""
        quote = messages[-1].text[:QUOTE_CHARACTERS]
        if self._language == "zh":
            return Generation(text=f"你说：“{quote}”。这一定很难受。")
        return Generation(text=f'You said: "{quote}". That must be hard.')


def keywords(text: str, language: Language) -> list[str]:
    """The ``KEYWORDS`` longest words (English) or clauses cut to four characters (Chinese), in the text's order."""
    if language == "zh":
        return [clause[:4] for clause in re.findall(r"[\u4e00-\u9fff]{2,}", text)[:KEYWORDS]]
    words = list(dict.fromkeys(re.findall(r"[A-Za-z]+", text.lower())))
    longest = sorted(words, key=len, reverse=True)[:KEYWORDS]
    return [word for word in words if word in longest]


# What a client is measured against, by name: from a language and a seed to a supporter.
BUILTIN: dict[str, Callable[[Language, int], Supporter]] = {
    "echo": lambda language, seed: Echo(),
    "parrot": lambda language, seed: Parrot(language),
    "quote_frame": lambda language, seed: QuoteFrame(language),
    "mixing_supporter": MixingSupporter,
    "good_supporter": GoodSupporter,
}
DEGENERATE_BUILTIN = ("echo", "parrot", "quote_frame")
