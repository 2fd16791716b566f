"""The part of a run's configuration that says what is rewarded, what voids a reward, and who watches. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from rewards.gates.gate import Gate
from trainers.client_config import Count, ModelSource, Section

ALL_GATES: tuple[Gate, ...] = get_args(Gate)


class RewardTerm(Section):
    """One reward and its share of the total."""

    name: str = Field(description="Name of the reward, such as emotion, or rubric-NAME for a judge under judges.")
    weight: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="Its weight; the total is the weighted mean. 0: measured and logged, and no more."
    )


class JudgeTerm(Section):
    """A judge: language models that rate dialogues by a rubric, as the reward rubric-NAME."""

    rubric: str = Field(description="Rubric: a name in configs/rubrics, or a path.")
    models: list[ModelSource] = Field(min_length=1, description="The models that judge, each asked samples times.")
    samples: Count = Field(default=1, description="How often each model is asked; above 1 needs a temperature.")
    temperature: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Sampling temperature of the judge.")
    attempts: Count = Field(default=3, description="How often one answer is asked for at most.")
    max_tokens: Count = Field(default=2048, description="Longest answer, in tokens.")
    longest_text: Annotated[int, Field(ge=20, le=1000)] = Field(
        default=240, description="Longest reason and quote in an answer, in characters."
    )
    evidence: Literal["quote", "number"] = Field(
        default="quote", description="What a verdict names: words of a reply, or, for weak models, the reply's number."
    )
    certificates: list[Path] = Field(
        default=[], description="Certificates (attune judge certify): an axis that none of them covers has no weight."
    )
    uncertified: bool = Field(
        default=False, description="Let every axis carry weight without a certificate; the model card says so."
    )
    cache: Path | None = Field(default=None, description="File that keeps the judge's answers; none: none kept.")
    offline: bool = Field(default=False, description="Answer from the cache alone.")


class Gates(Section):
    """Safety gates: a closed one voids what a dialogue gained."""

    names: list[Gate] = Field(default=[], description="Gates that void the gain.")
    read_only: list[Gate] = Field(default=[], description="Gates that are only counted and logged.")
    judged: list[Gate] = Field(default=[], description="Gates of these that models read where no pattern closed.")
    models: list[ModelSource] = Field(default=[], description="The models that read them; any of them can close.")

    @property
    def all(self) -> tuple[Gate, ...]:
        """Every gate that is checked, in the order in which they are known."""
        return tuple(gate for gate in ALL_GATES if gate in {*self.names, *self.read_only})

    @model_validator(mode="after")
    def _readers_fit(self) -> Gates:
        if unknown := [gate for gate in self.judged if gate not in self.all]:
            raise ValueError(
                f"gates.judged: {unknown[0]} is not checked; name it under gates.names or gates.read_only too"
            )
        if self.judged and not self.models:
            raise ValueError("gates.judged: needs a model that reads; name one under gates.models")
        if self.models and not self.judged:
            raise ValueError("gates.models: read nothing without gates.judged; name gates there, or remove the models")
        return self


class DeadSignals(Section):
    """When a rubric that tells a group's dialogues apart in nothing is compared pairwise instead."""

    window: Count = Field(default=10, description="Steps over which the rate of dead groups is taken.")
    max_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="Share of the window's groups without a difference above which a reward is dead."
    )
    min_groups: Count = Field(default=20, description="Measured groups that the window must hold.")
    pairwise: list[str] = Field(default=[], description="Rewards (rubric-NAME) that may be compared pairwise then.")


class WatchTerm(Section):
    """The watch over the run (docs/watch.md)."""

    rules: str | None = Field(default=None, description="Rules: a name in configs/watch, or a path; none: no watch.")
    every: Count = Field(default=1, description="Steps between looks at held-out dialogues.")
    cards: Count = Field(default=8, description="Cards of a look, from the split below, one dialogue each.")
    split: Literal["dev", "train"] = Field(default="dev", description="Split that a look takes its cards from.")
    judge: str | None = Field(
        default=None, description="A judge under judges (rubric-NAME) without weight, asked at each look."
    )
    canaries: bool = Field(default=True, description="Score fixed transcripts at each step.")
