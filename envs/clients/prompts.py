"""Prompts of clients that a language model plays: Jinja files in ``configs/prompts/client`` and words beside them.

A prompt is two messages: instructions and persona in the system message, everything that was said in the user message.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from envs.cards import HiddenNeed, Language, PersonaCard, Temperament, Text
from envs.errors import InputError, describe_validation
from envs.llm_rules import Band
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
    """The words of ``language``. Raises InputError naming the file."""
    path = FOLDER / f"words.{language}.yaml"
    try:
        return Words.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't be read as YAML: {error}") from error
    except ValidationError as error:
        raise InputError(describe_validation(error, str(path))) from error


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
