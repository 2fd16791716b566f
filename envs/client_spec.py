"""Client specs: the versioned rules that a simulated client plays by, as data in ``configs/clients/*.yaml``.

The rules every client shares (clamp, range, when it stops) stand at the top of a spec. Each kind has a part of its own:
``appraisal`` holds the weights of the embedded client, ``llm`` how a language model plays (``envs/llm_rules.py``),
``ensemble`` the specs of clients that listen together. A spec is hashed over its content, and every receipt names that
hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from envs.cards import HARMS, STRATEGIES, Act, HiddenNeed, Language, Temperament
from envs.errors import InputError, describe_validation
from envs.hashing import content_hash
from envs.llm_rules import LlmRules
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


class Ensemble(_Rules):
    """Clients that hear the same reply. The first one is the voice. ``members``: spec names, which stand here as specs,
    so that the hash covers their rules; ``disagreement_weight``: standard deviations taken off the mean emotion."""

    members: Annotated[tuple[ClientSpec, ...], Field(min_length=2)]
    disagreement_weight: Annotated[float, Field(ge=0)]

    @field_validator("members", mode="before")
    @classmethod
    def _read(cls, members: Any) -> Any:
        if not isinstance(members, list | tuple):
            return members
        return [load_spec(member) if isinstance(member, str) else member for member in members]

    @model_validator(mode="after")
    def _apart(self) -> Ensemble:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(
                f"members {', '.join(names)}: each spec may stand once, since its name tells members apart"
            )
        if nested := [member.name for member in self.members if member.kind == "ensemble"]:
            raise ValueError(f"members: {nested[0]} is an ensemble itself; name its members instead")
        return self


PARTS = {"appraisal": ("appraisal", "perceiver"), "llm": ("llm",), "ensemble": ("ensemble",)}  # what each kind needs


class ClientSpec(_Rules):
    """The rules of one kind of client. Emotions are 0-100; ``clamp`` is the largest change a turn may bring, None: any.

    ``perceiver`` and ``appraisal`` belong to the embedded client, ``llm`` and ``ensemble`` to the kinds of their names.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+-v\d+$")]
    kind: Literal["appraisal", "llm", "ensemble"]
    perceiver: str | None = None
    clamp: Annotated[float, Field(gt=0)] | None
    floor: Annotated[float, Field(ge=0)]
    cap: Annotated[float, Field(le=100)]
    success_at: Annotated[float, Field(ge=0, le=100)]
    failure_below: Annotated[float, Field(ge=0, le=100)]
    max_turns: Annotated[int, Field(ge=1)]
    appraisal: Appraisal | None = None
    llm: LlmRules | None = None
    ensemble: Ensemble | None = None

    @model_validator(mode="after")
    def _in_order(self) -> ClientSpec:
        if self.floor >= self.cap:
            raise ValueError(f"floor {self.floor:g} must lie below cap {self.cap:g}")
        for kind, parts in PARTS.items():
            for part in parts:
                if (getattr(self, part) is not None) != (kind == self.kind):
                    do = "add it" if kind == self.kind else "remove it"
                    raise ValueError(f"{part} belongs to kind {kind}, and this is kind {self.kind}; {do}")
        return self

    @model_serializer(mode="wrap")
    def _own_parts(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the parts of other kinds, so that a new kind leaves the hash of every other spec as it is."""
        others = {part for kind, parts in PARTS.items() if kind != self.kind for part in parts}
        return {key: value for key, value in handler(self).items() if key not in others}

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the rules."""
        return content_hash(self.model_dump(mode="json"))

    @property
    def embedded(self) -> Appraisal:
        """The embedded client's weights. Raises InputError when this is another kind of client."""
        if self.appraisal is None:
            raise InputError(f"client spec {self.name} is of kind {self.kind} and has no rules for the embedded client")
        return self.appraisal

    def applied(self, emotion: float, written_change: float) -> float:
        """The emotion after ``written_change``: clamped to +-clamp where there is one, then kept in [floor, cap]."""
        change = written_change
        if self.clamp is not None:
            change = max(-self.clamp, min(self.clamp, written_change))
        return max(self.floor, min(self.cap, emotion + change))


Ensemble.model_rebuild()
ClientSpec.model_rebuild()


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
