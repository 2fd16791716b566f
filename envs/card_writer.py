"""New persona cards drafted by a language model: each is validated, and refused when it is like a card that there is.

A refused draft goes back to the model with the cause, a bounded number of times. What comes out is a draft, to be read
by a person before anyone trains on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from jinja2 import Environment, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from envs.card_set import NEAR, Crowd
from envs.cards import (
    BigFive,
    Facts,
    HiddenNeed,
    Language,
    PersonaCard,
    Profile,
    Sensitivities,
    Situation,
    Split,
    StartEmotion,
    Temperament,
    Text,
    Unit,
    Voice,
)
from envs.errors import InputError, describe_validation
from envs.hashing import derived_seed
from envs.models.model_client import Ask, ChatMessage, ModelClient, ModelError
from envs.trajectory import Record

PROMPTS = Path(__file__).resolve().parent.parent / "configs" / "prompts" / "card_writer.yaml"
TEMPERATURE = 0.8  # drafts are to differ; the seed keeps them repeatable
MAX_TOKENS = 4096
_JINJA = Environment(undefined=StrictUndefined, autoescape=False)


class Draft(BaseModel):
    """What the model writes: a card less its id, what is ordered of it, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    slug: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    profile: Profile
    situation: Situation
    opening: Text
    facts: Facts
    soothes: Sensitivities
    hurts: Sensitivities
    voice: Voice
    big_five: BigFive
    inertia: Unit
    start_emotion: StartEmotion
    speech: Text


class RejectedDraft(Record):
    """A draft that was refused: for which topic, at which attempt (from 1), and why."""

    topic: str
    attempt: int
    cause: str


@dataclass(frozen=True)
class Order:
    """What to write: ``count`` cards, the topics in turn; each may be tried ``attempts`` times."""

    topics: Sequence[str]
    count: int
    licence: str
    language: Language = "en"
    split: Split = "train"
    attempts: int = 3
    seed: int = 0


@dataclass
class Written:
    """The cards, and every draft that was refused. ``unfilled``: cards that were asked for and not written."""

    cards: list[PersonaCard] = field(default_factory=list)
    rejected: list[RejectedDraft] = field(default_factory=list)
    unfilled: int = 0


def read_topics(path: Path) -> list[str]:
    """One topic a line; blank lines and lines that begin with ``#`` are passed over. Raises InputError for none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {error}") from error
    if topics := [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]:
        return topics
    raise InputError(f"{path}: holds no topic; write one on each line")


async def write_cards(
    ask_for: Callable[[], ModelClient],
    order: Order,
    existing: Sequence[PersonaCard] = (),
    keep: Callable[[PersonaCard], object] | None = None,
) -> Written:
    """Draft ``order.count`` cards, none like another or like one of ``existing``; ``keep`` is given each as it is done.

    ``ask_for`` gives a model client for each card. Hidden needs and temperaments are dealt in turn, so that every pair
    comes up. When the model gives no answer at all for a card, the rest isn't asked for.
    """
    written, crowd = Written(), Crowd(existing)
    for number in range(order.count):
        before = len(written.rejected)
        card = await _write(ask_for(), order, number, crowd, written.rejected)
        if card is None:
            written.unfilled += 1
            if all(one.cause.startswith(NO_ANSWER) for one in written.rejected[before:]):
                written.unfilled = order.count - len(written.cards)
                break
            continue
        crowd.add(card)
        written.cards.append(card)
        if keep:
            keep(card)
    return written


NO_ANSWER = "the model gave no answer: "


class _Unusable(Exception):
    """A draft can't be used; the message goes back to the model and into the report."""


async def _write(
    model: ModelClient, order: Order, number: int, crowd: Crowd, rejected: list[RejectedDraft]
) -> PersonaCard | None:
    """One card, or None when every attempt was refused."""
    topic = order.topics[number % len(order.topics)]
    need = tuple(HiddenNeed)[number % len(HiddenNeed)]
    temperament = tuple(Temperament)[number % len(Temperament)]  # 8 and 3 share no factor: 24 pairs
    messages = _first_messages(order, topic, need, temperament)
    for attempt in range(order.attempts):
        ask = Ask(
            messages=tuple(messages),
            answer_schema=Draft.model_json_schema(),
            schema_name="persona_card",
            seed=derived_seed("card_writer", order.seed, number),
            attempt=attempt,
            temperature=TEMPERATURE,
            max_tokens=MAX_TOKENS,
        )
        try:
            answer = await model.ask(ask)
        except ModelError as error:
            rejected.append(RejectedDraft(topic=topic, attempt=attempt + 1, cause=f"{NO_ANSWER}{error}"))
            continue
        try:
            if answer.finish_reason == "length":
                raise _Unusable(f"it was cut off after {MAX_TOKENS} tokens; write less")
            ordered = {"hidden_need": need, "temperament": temperament, "source": f"drafted by {answer.model}"}
            return _card(answer.text, ordered, order, crowd)
        except _Unusable as error:
            rejected.append(RejectedDraft(topic=topic, attempt=attempt + 1, cause=str(error)))
            again = _JINJA.from_string(_prompts()["again"]).render(cause=str(error))
            messages = [*messages[:2], ChatMessage(role="assistant", content=answer.text or "{}")]
            messages.append(ChatMessage(role="user", content=again))
    return None


def _card(text: str, ordered: dict[str, Any], order: Order, crowd: Crowd) -> PersonaCard:
    """The card of an answer. Raises _Unusable with the cause."""
    begin, end = text.find("{"), text.rfind("}")  # models like to wrap JSON in a fence or a greeting
    try:
        draft = Draft.model_validate(json.loads(text[begin : end + 1]))
        content = draft.model_dump(exclude={"slug"})
        own = {"language": order.language, "split": order.split, "licence": order.licence}
        name = crowd.free_id(f"{order.language}-{draft.slug}")
        card = PersonaCard.model_validate(content | ordered | own | {"id": name})
    except ValidationError as error:
        raise _Unusable(describe_validation(error, "card")) from error
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"it is no JSON object: {error}") from error
    nearest, likeness = crowd.nearest(card)
    if nearest and likeness >= NEAR:
        raise _Unusable(
            f"it is too like {nearest.id} (likeness {likeness:.2f}); invent another person, place and event"
        )
    return card


def _first_messages(order: Order, topic: str, need: HiddenNeed, temperament: Temperament) -> list[ChatMessage]:
    prompts = _prompts()
    task = _JINJA.from_string(prompts["task"]).render(
        language=prompts["languages"][order.language],
        topic=topic,
        need=prompts["needs"][need.value],
        temperament=prompts["temperaments"][temperament.value],
    )
    return [ChatMessage(role="system", content=prompts["system"]), ChatMessage(role="user", content=task)]


@cache
def _prompts() -> dict[str, Any]:
    return yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
