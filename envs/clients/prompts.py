"""Prompts of clients that a language model plays: Jinja files in ``configs/prompts/client`` and words beside them.

A prompt is two messages: instructions and persona in the system message, everything that was said in the user message.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from envs.cards import HiddenNeed, Language, PersonaCard, Temperament, Text
from envs.errors import InputError
from envs.llm_rules import Band
from envs.marked_yaml import load_marked
from envs.models.fence import defuse
from envs.models.model_client import ChatMessage
from envs.models.templates import environment, two_messages

FOLDER = Path(__file__).resolve().parent.parent.parent / "configs" / "prompts" / "client"


class Speakers(BaseModel):
    """How the prompts call who said something: the client, the supporter, and the client's own thoughts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client: Text
    supporter: Text
    thoughts: Text


class Words(BaseModel):
    """What the prompts say for a code of a card or a spec, in one language."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speakers: Speakers
    needs: dict[HiddenNeed, Text]
    temperaments: dict[Temperament, Text]
    bands: dict[Band, Text]


@cache
def words(language: Language) -> Words:
    """The words of ``language``. Raises InputError naming the file and the line."""
    return load_marked(FOLDER / f"words.{language}.yaml", Words)


def prompt(stem: str, language: Language, **values: Any) -> tuple[ChatMessage, ChatMessage]:
    """The system and the user message of ``<stem>.<language>.jinja``. Raises InputError when there is no such file."""
    return two_messages(FOLDER, stem, language, **values)


def persona_text(card: PersonaCard) -> str:
    """The person and what happened, as the client's prompts tell it. The hidden need and the notes are left out."""
    temperament = words(card.language).temperaments[card.temperament] if card.temperament else None
    template = environment(FOLDER).get_template(f"persona.{card.language}.jinja")
    return defuse(template.render(card=card, temperament=temperament)).strip()


def need_text(card: PersonaCard) -> str:
    """The hidden need in the card's own words, else in ours. Raises InputError when the card has none."""
    if card.need:
        return card.need
    if card.hidden_need:
        return words(card.language).needs[card.hidden_need]
    raise InputError(f"card {card.id} has no hidden_need and no need, which a played client is judged by; add one")
