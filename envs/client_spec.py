"""Client specs: the versioned rules that a simulated client plays by, as data in ``configs/clients/*.yaml``.

The rules every client shares (clamp, range, when it stops) stand at the top of a spec; the ``appraisal`` part holds the
weights of the embedded client. A spec is hashed over its content, and every receipt names that hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from envs.cards import HARMS, STRATEGIES, Act, HiddenNeed, Language, Temperament
from envs.errors import InputError, describe_validation
from envs.hashing import content_hash
from envs.perception.percept import Move

SPECS_DIR = Path(__file__).resolve().parent.parent / "configs" / "clients"

Phase = Literal["explore", "comfort", "act"]
PHASES: tuple[Phase, ...] = ("explore", "comfort", "act")
Push = Annotated[float, Field(ge=-1, le=1)]
Factor = Annotated[float, Field(ge=0, le=2)]


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ByPhase(_Rules):
    """A push on valence for each phase of the talk."""

    explore: Push
    comfort: Push
    act: Push

    def at(self, phase: Phase) -> float:
        """The push in ``phase``."""
        return float(getattr(self, phase))


class NeedRule(_Rules):
    """What a hidden need waits for: any of these signals, from this phase on."""

    signals: tuple[Act | Move, ...]
    since: Phase
    push: Push


class TemperamentRule(_Rules):
    """``warmth`` and ``harm`` scale what lands well and ill; ``patience`` is how many flat turns in a row are borne."""

    warmth: Factor
    harm: Factor
    patience: Annotated[int, Field(ge=1)]


class Limits(_Rules):
    """Where manner spoils a reply. Shares in [0, 1], lengths in words."""

    echo: float
    repetition: float
    likeness: float
    gibberish: float
    garbled: float
    long_words: int
    wall_words: int
    short_words: int
    questions_at_once: int
    questions_in_a_row: int
    heard: float


class Manner(_Rules):
    """Pushes on valence for how a reply is made, whatever it means."""

    silence: Push
    gibberish: Push
    garbled: Push
    meta: Push
    echo: Push
    repetition: Push
    each_further_repetition: Push
    likeness: Push
    flattery: Push
    long: Push
    wall: Push
    many_questions: Push
    interrogation: Push
    same_act_again: Push


class Generic(_Rules):
    """What becomes of replies that could have been said to anyone: a factor on their warmth, and a push.

    Both are lists by how many such replies came in a row; the last entry holds for all further ones.
    """

    warmth: Annotated[tuple[Factor, ...], Field(min_length=1)]
    push: Annotated[tuple[Push, ...], Field(min_length=1)]


class Appraisal(_Rules):
    """The embedded client's weights: pushes on valence in [-1, 1], then the affect model's gain in emotion points."""

    strategies: dict[Act, ByPhase]
    second_act: Factor
    open_question: Push
    permission: Push
    needs: dict[HiddenNeed, NeedRule]
    soothes: Push
    hurts: Push
    harms: dict[Act, Push]
    further_harm: Factor
    temperaments: dict[Temperament, TemperamentRule]
    manner: Manner
    generic: Generic
    suspicion: Factor
    limits: Limits
    phase_facts: dict[Phase, int]
    gain: Annotated[float, Field(gt=0)]
    reactions: dict[Language, dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]]

    @model_validator(mode="after")
    def _complete(self) -> Appraisal:
        tables: tuple[tuple[str, Mapping[Any, Any], Iterable[str]], ...] = (
            ("needs", self.needs, HiddenNeed),
            ("temperaments", self.temperaments, Temperament),
            ("strategies", self.strategies, STRATEGIES),
            ("harms", self.harms, HARMS),
            ("phase_facts", self.phase_facts, PHASES),
            ("reactions", self.reactions, get_args(Language)),
        )
        for name, table, keys in tables:
            if missing := [str(key) for key in keys if key not in table]:
                raise ValueError(f"{name} lacks {missing[0]}; every one needs a rule")
        if self.phase_facts["explore"] != 0:
            raise ValueError("phase_facts: explore must be 0, because a talk begins with nothing disclosed")
        if len(self.generic.warmth) != len(self.generic.push):
            raise ValueError("generic: warmth and push must be equally long, an entry for each reply in a row")
        return self


class ClientSpec(_Rules):
    """The rules of one kind of client. Emotions are 0-100; ``clamp`` is the largest change a turn may bring."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+-v\d+$")]
    kind: Literal["appraisal"]
    perceiver: str
    clamp: Annotated[float, Field(gt=0)]
    floor: Annotated[float, Field(ge=0)]
    cap: Annotated[float, Field(le=100)]
    success_at: Annotated[float, Field(ge=0, le=100)]
    failure_below: Annotated[float, Field(ge=0, le=100)]
    max_turns: Annotated[int, Field(ge=1)]
    appraisal: Appraisal

    @model_validator(mode="after")
    def _in_order(self) -> ClientSpec:
        if self.floor >= self.cap:
            raise ValueError(f"floor {self.floor:g} must lie below cap {self.cap:g}")
        return self

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the rules."""
        return content_hash(self.model_dump(mode="json"))

    def applied(self, emotion: float, written_change: float) -> float:
        """The emotion after ``written_change``: clamped to +-clamp, then kept in [floor, cap]."""
        change = max(-self.clamp, min(self.clamp, written_change))
        return max(self.floor, min(self.cap, emotion + change))


def load_spec(name_or_path: str) -> ClientSpec:
    """Load a spec by name (``appraisal-v1``) or by path. Raises InputError naming the file, the key and the remedy."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = SPECS_DIR / f"{name_or_path}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ClientSpec.model_validate(data)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in SPECS_DIR.glob("*.yaml")))
        raise InputError(f"client spec {name_or_path!r}: there is no {path}; known specs: {known}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't be read as YAML: {error}") from error
    except ValidationError as error:
        raise InputError(describe_validation(error, str(path))) from error
