"""Prompts of a judge: Jinja files in ``configs/prompts/judge``, the rubric in the system message, the talk in the user
message, each message of it between fences that nobody in the talk can know the name of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from envs.cards import Language, Text
from envs.hashing import content_hash
from envs.marked_yaml import load_marked
from envs.models.fence import defuse, fenced, without_thought
from envs.models.model_client import ChatMessage
from envs.models.templates import two_messages
from envs.trajectory import Message, Speaker
from rewards.rubric import Rubric

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "prompts" / "judge"

Mode = Literal["rate", "compare"]


class Words(BaseModel):
    """What the prompts say in one language for speakers, for a whole answer, and for causes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speakers: dict[Speaker, Text]
    answer: Text
    causes: dict[str, Text]


@cache
def words(language: Language) -> Words:
    """The words of ``language``. Raises InputError naming the file and the line."""
    return load_marked(FOLDER / f"words.{language}.yaml", Words)


@cache
def prompt_hash(mode: Mode, language: Language) -> str:
    """SHA-256 over the prompt's file and its words: what a certificate names. The rubric has a hash of its own."""
    files = (f"{mode}.{language}.jinja", f"words.{language}.yaml")
    return content_hash([(FOLDER / name).read_text(encoding="utf-8") for name in files])


def as_shown(message: Message) -> str:
    """What a judge reads of a message: without thoughts, control tokens and what can't be seen."""
    return defuse(without_thought(message.text)).strip()


def rating_prompt(
    rubric: Rubric,
    language: Language,
    messages: Sequence[Message],
    fence: str,
    longest_quote: int | None,
    problems: Sequence[str],
) -> tuple[ChatMessage, ...]:
    """Asks for a level on each axis: of the whole talk, or of its last message where the rubric is about a turn."""
    said = _fenced(messages, language, fence)
    by_turn = rubric.scope == "turn"
    return two_messages(
        FOLDER,
        "rate",
        language,
        **_rubric_values(rubric, language),
        scope=rubric.scope,
        fence=fence,
        history=said[:-1] if by_turn else said,
        latest=said[-1] if by_turn else None,
        longest_quote=longest_quote,
        problems=problems,
    )


def pair_prompt(
    rubric: Rubric,
    language: Language,
    talks: tuple[Sequence[Message], Sequence[Message]],
    fence: str,
    longest_quote: int | None,
    problems: Sequence[str],
) -> tuple[ChatMessage, ...]:
    """Asks which of two talks is better on each axis, in the order in which they are given."""
    first, second = (_fenced(messages, language, fence) for messages in talks)
    return two_messages(
        FOLDER,
        "compare",
        language,
        **_rubric_values(rubric, language),
        fence=fence,
        first=first,
        second=second,
        longest_quote=longest_quote,
        problems=problems,
    )


def _fenced(messages: Sequence[Message], language: Language, fence: str) -> list[str]:
    who = words(language).speakers
    return [fenced(without_thought(message.text), who[message.speaker], fence) for message in messages]


def _rubric_values(rubric: Rubric, language: Language) -> dict[str, Any]:
    levels = range(rubric.scale.low, rubric.scale.high + 1)
    axes = [
        {
            "name": axis.name,
            "question": axis.question[language],
            "levels": [{"number": number, "text": axis.levels[number][language]} for number in levels],
        }
        for axis in rubric.axes
    ]
    return {"title": rubric.title, "axes": axes, "low": rubric.scale.low, "high": rubric.scale.high}
