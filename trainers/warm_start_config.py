"""The part of a run's configuration that says what the adapter imitates before it is rewarded. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainers.client_config import Count, Positive, Section


class WarmStart(Section):
    """What the adapter imitates before RL (docs/training.md#warm-start)."""

    data: list[str] = Field(
        default=[], description="Dialogues: JSON lines, a dataset's folder, or hf:owner/name; empty: no warm start."
    )
    min_emotion: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="Least final emotion of attune's own dialogues that are used; none: all."
    )
    max_dialogues: Count | None = Field(default=None, description="As many are drawn with the run's seed; none: all.")
    epochs: Count = Field(default=2, description="How often the dialogues are gone through.")
    batch: Count = Field(default=16, description="Dialogues in one optimizer step.")
    learning_rate: Positive = Field(default=1e-3, description="AdamW's learning rate, falling linearly to 0.")


def warm_start_conflicts(term: WarmStart, micro_batch: int, devices: int) -> list[str]:
    """What can't be combined, a line each, with the key first. ``devices``: how many train."""
    if not term.data:
        given = sorted(term.model_fields_set - {"data"})
        changed = [name for name in given if getattr(term, name) != WarmStart.model_fields[name].default]
        return [f"warm_start.{name}: says nothing without warm_start.data; name dialogues there" for name in changed]
    if term.batch % (micro_batch * devices):
        return [
            f"warm_start.batch: {term.batch} is no multiple of trainer.micro_batch x training devices "
            f"({micro_batch * devices}); change one of these"
        ]
    return []
