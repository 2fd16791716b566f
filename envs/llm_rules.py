"""The rules of a client that a language model plays: the ``llm`` part of a client spec.

Two calls a turn, after SAGE (arXiv 2505.02847): one appraises the reply and feels, the other speaks. What differs
between the benchmark, RLVER (arXiv 2507.03112) and attune's own client is data here.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.cards import Language, StartEmotion

Band = Literal["S", "A", "B", "C", "F"]
LONGEST_TEXT = 2_000  # characters of one field of an answer, whatever a spec says
Change = Annotated[int, Field(ge=-100, le=100)]
Stem = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptFiles(_Rules):
    """Prompts by file stem: ``configs/prompts/client/<stem>.<language>.jinja``, with a system and a user block each."""

    open: Stem
    appraise: Stem
    reply: Stem


class LlmRules(_Rules):
    """How a language model plays the client.

    ``start_emotion`` stands over the card's; None: the card's. ``hidden_intention``: whether speech may hint at it,
    must keep it out ("never": the call that speaks isn't told it either), or may say it. ``bands``: letter to lowest
    emotion. ``ends_at_success``: whether the talk ends at ``success_at``; ``ends_below``: emotion under which it ends,
    None: the spec's ``failure_below``. ``usual_change`` is told in the prompt, ``change_bounds`` (lowest, highest)
    stand in the answer's schema. ``questions``: how many one message may ask; ``longest``: characters of a message,
    ``longest_thought`` of each thought that leads to it.
    ``attempts``: how often one thing is asked at most. ``retests``: how often each appraisal is asked for again with
    another seed; at a temperature over 0 at least once, because what can't be repeated has to say how far it strays.
    """

    start_emotion: StartEmotion | None
    opening: Literal["card", "generated"]
    hidden_intention: Literal["hint", "never", "may_reveal"]
    bands: dict[Band, Annotated[float, Field(ge=0, le=100)]]
    ends_at_success: bool = True
    ends_below: Annotated[float, Field(ge=0, le=100)] | None = None
    prompts: PromptFiles
    usual_change: Annotated[int, Field(ge=1)]
    change_bounds: tuple[Change, Change]
    questions: Annotated[int, Field(ge=0)]
    longest: dict[Language, Annotated[int, Field(ge=1)]]
    longest_thought: Annotated[int, Field(ge=1, le=LONGEST_TEXT)]
    temperature: Annotated[float, Field(ge=0)]
    max_tokens: Annotated[int, Field(ge=1)]
    attempts: Annotated[int, Field(ge=1)]
    retests: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> LlmRules:
        low, high = self.change_bounds
        if not low < 0 < high:
            raise ValueError(f"change_bounds {low} and {high}: the first must lie below 0, the second above")
        thresholds = list(self.bands.values())
        if 0 not in thresholds or len(set(thresholds)) < len(thresholds):
            raise ValueError(
                "bands must have thresholds that differ and one of 0, so that every emotion lies in one band"
            )
        if self.usual_change > max(-low, high):
            raise ValueError(f"usual_change {self.usual_change} must lie within change_bounds, {low} and {high}")
        if missing := [language for language in get_args(Language) if language not in self.longest]:
            raise ValueError(f"longest lacks {missing[0]}; each language needs a bound in characters")
        if self.temperature > 0 and self.retests < 1:
            raise ValueError("retests must be at least 1 at a temperature over 0: a repeatable client needs 0")
        return self

    def band(self, emotion: float) -> Band:
        """The band that ``emotion`` (0-100) lies in."""
        reached: list[Band] = [band for band, lowest in self.bands.items() if emotion >= lowest]
        return max(reached, key=lambda band: self.bands[band])
