"""Persona cards: who the simulated client is, what happened, what they need and never say.

A card is one YAML file below ``configs/cards/<language>/``. It is frozen once loaded and hashed over its content, so
that a receipt can name exactly the card that was played. The eight hidden needs and the three temperaments are those of
SAGE (arXiv 2505.02847); the Big Five feed the affect model of ``envs/affect.py``.

A card that was imported may tell its person in free text and lack what only the embedded client plays from, its script;
``PersonaCard.script`` is the whole script, or says what is missing.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from envs.errors import FORMS, InputError, describe_validation
from envs.hashing import content_hash

CARDS_DIR = Path(__file__).resolve().parent.parent / "configs" / "cards"

Language = Literal["en", "zh"]
Split = Literal["train", "dev", "test"]
Text = Annotated[str, Field(min_length=1)]
Unit = Annotated[float, Field(ge=0, le=1)]


class HiddenNeed(StrEnum):
    """What the client wants from the talk and does not say. Four rational needs, then four emotional ones."""

    DIALECTICAL_ANALYSIS = "dialectical_analysis"
    REAL_ADVICE = "real_advice"
    OTHERS_MOTIVES = "others_motives"
    GUIDED_SELF_REFLECTION = "guided_self_reflection"
    SINCERE_PRAISE = "sincere_praise"
    LISTENING = "listening"
    DEEP_EMPATHY = "deep_empathy"
    NOT_AT_FAULT = "not_at_fault"


class Temperament(StrEnum):
    """How the client meets a supporter: quick to turn sharp, slow to say anything, or quick to leave the subject."""

    NEGATIVE = "negative"
    PASSIVE = "passive"
    AVOIDANT = "avoidant"


class Act(StrEnum):
    """What a supporter's reply does: ESConv's eight strategies, then six harmful acts."""

    QUESTION = "question"
    RESTATEMENT = "restatement"
    REFLECTION = "reflection"
    SELF_DISCLOSURE = "self_disclosure"
    AFFIRMATION = "affirmation"
    SUGGESTION = "suggestion"
    INFORMATION = "information"
    OTHER = "other"
    BLAMING = "blaming"
    MINIMISING = "minimising"
    ORDERING = "ordering"
    LECTURING = "lecturing"
    CHANGING_SUBJECT = "changing_subject"
    PERSUADING = "persuading"


STRATEGIES = tuple(Act)[:8]
HARMS = tuple(Act)[8:]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Profile(_Part):
    """Who the person is. ``age`` in years."""

    name: Text
    age: Annotated[int, Field(ge=16, le=75)]
    gender: Text
    occupation: Text
    place: Text
    background: Text
    family: Text
    interests: Annotated[tuple[Text, ...], Field(min_length=2)]


class Event(_Part):
    """One dated step of the situation's timeline."""

    when: Text
    what: Text


class Situation(_Part):
    """What happened, in order, what was tried, and where things stand."""

    summary: Text
    timeline: Annotated[tuple[Event, ...], Field(min_length=3)]
    tried: Annotated[tuple[Text, ...], Field(min_length=2)]
    now: Text


class Fact(_Part):
    """Something the client can disclose, in their own words; facts come out in the order of the card."""

    stage: Literal["surface", "middle", "deep"]
    say: Text


class Sensitivity(_Part):
    """An act that lands better (soothes) or worse (hurts) with this person than with others, and why."""

    act: Act
    because: Text


class Voice(_Part):
    """Lines in the client's own words, by the state they are in."""

    warming: Annotated[tuple[Text, ...], Field(min_length=3)]
    guarded: Annotated[tuple[Text, ...], Field(min_length=3)]
    hurt: Annotated[tuple[Text, ...], Field(min_length=3)]
    leaving: Text
    relieved: Text


class BigFive(_Part):
    """Personality in [0, 1], 0.5 being the population's middle."""

    openness: Unit
    conscientiousness: Unit
    extraversion: Unit
    agreeableness: Unit
    neuroticism: Unit


def _form(value: Any) -> str:
    return FORMS[isinstance(value, str)]


FreeText = Annotated[Text, Tag(FORMS[1])]
Facts = Annotated[tuple[Fact, ...], Field(min_length=6)]
Sensitivities = Annotated[tuple[Sensitivity, ...], Field(min_length=2)]
StartEmotion = Annotated[int, Field(ge=0, le=100)]


class Script(NamedTuple):
    """What the embedded client plays a card from."""

    opening: str
    facts: tuple[Fact, ...]
    soothes: tuple[Sensitivity, ...]
    hurts: tuple[Sensitivity, ...]
    voice: Voice
    hidden_need: HiddenNeed
    temperament: Temperament
    big_five: BigFive
    inertia: float
    start_emotion: int


EMBEDDED_ONLY = ("facts", "soothes", "hurts", "voice", "big_five", "inertia")  # no other client reads these


class PersonaCard(_Part):
    """A person to be played: frozen, hashed, with licence and source.

    ``need`` says the hidden need in the card's own words. ``notes`` hold what a source told besides, by its own field
    names; no client plays them.
    """

    id: Annotated[str, Field(pattern=r"^[a-z]{2}-[a-z0-9-]+$")]
    language: Language
    split: Split
    source: Text
    licence: Text
    risk: Literal["none", "acute"] = "none"
    profile: Annotated[Annotated[Profile, Tag(FORMS[0])] | FreeText, Discriminator(_form)]
    situation: Annotated[Annotated[Situation, Tag(FORMS[0])] | FreeText, Discriminator(_form)]
    opening: Text | None = None
    facts: Facts | None = None
    soothes: Sensitivities | None = None
    hurts: Sensitivities | None = None
    voice: Voice | None = None
    hidden_need: HiddenNeed | None = None
    need: Text | None = None
    temperament: Temperament | None = None
    big_five: BigFive | None = None
    inertia: Unit | None = None
    start_emotion: StartEmotion | None = None
    speech: Text | None = None
    notes: dict[Text, Text] | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the whole content; what a card leaves out doesn't count."""
        return content_hash({key: value for key, value in self.model_dump(mode="json").items() if value is not None})

    @property
    def script(self) -> Script:
        """The whole script. Raises InputError naming what the card lacks."""
        parts = {name: getattr(self, name) for name in Script._fields}
        if missing := [name for name, value in parts.items() if value is None]:
            raise InputError(
                f"card {self.id} has no {', '.join(missing)}, which the embedded client plays from; write them, or "
                "play the card with a client that a language model plays (client.spec=attune-v1)"
            )
        return Script(**parts)

    @model_validator(mode="after")
    def _consistent(self) -> PersonaCard:
        if not self.id.startswith(self.language + "-"):
            raise ValueError(f"id {self.id!r} must start with the card's language, {self.language!r}")
        script = {name: getattr(self, name) is not None for name in Script._fields}
        if any(script[name] for name in EMBEDDED_ONLY) and (missing := [name for name in script if not script[name]]):
            raise ValueError(f"{missing[0]}: is missing; add it: the embedded client plays from a whole script or none")
        order = ["surface", "middle", "deep"]
        stages = [order.index(fact.stage) for fact in self.facts or ()]
        if stages != sorted(stages):
            raise ValueError("facts must come in the order surface, middle, deep")
        soothes, hurts = self.soothes or (), self.hurts or ()
        if set(s.act for s in soothes) & set(s.act for s in hurts):
            raise ValueError("the same act can't both soothe and hurt")
        if bad := [s.act for s in soothes if s.act in HARMS]:
            raise ValueError(f"{bad[0]} is a harmful act and can't stand under soothes")
        if self.risk == "acute" and self.split != "test":
            raise ValueError("a person in acute danger may only be a test card")
        return self


def load_card(path: Path) -> PersonaCard:
    """Read one card. Raises InputError naming the file, the key and the remedy."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such card; `attune cards stats` lists the folders that are read") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: a card is a mapping of keys to values; see docs/cards.md for an example")
    try:
        return PersonaCard.model_validate(data)
    except ValidationError as error:
        raise InputError(describe_validation(error, str(path))) from error
