"""The rules of the watch as data, in ``configs/watch/``: what is watched, from where on it alarms, and what to do then.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from envs.errors import InputError, describe_validation
from envs.trajectory import Record

RULES_DIR = Path(__file__).resolve().parent.parent / "configs" / "watch"

Count = Annotated[int, Field(ge=1)]
Evaluations = Annotated[int, Field(ge=6)]  # of fewer, hardly an order is rare enough at 0.01
Share = Annotated[float, Field(ge=0, le=1)]


class Divergence(Record):
    """The trained reward rises and a held-out one doesn't, over the last K evaluations, for a K in ``evaluations``.

    A short K sees a quick rise soon, a long one sees a slow rise, or a jump, through the noise.

    Two one-sided tests (``trainers.trend``) at ``level`` have to agree: the trained reward rises; and the held-out
    score less ``keeps_up`` times the trained reward falls, so that even this share of the gain has not arrived.
    Besides, the last third of the trained values has to lie at least ``least_rise`` above the first.
    """

    trained: str  # the metric of a step whose mean since the last evaluation is compared
    evaluations: Annotated[tuple[Evaluations, ...], Field(min_length=1)]
    times: Count  # evaluations on end at which it has to hold
    level: Annotated[float, Field(gt=0, lt=0.5)]
    keeps_up: Annotated[float, Field(gt=0, le=1)]
    least_rise: Share
    halt: bool
    remedy: str


class Bound(Record):
    """A metric of the steps that stays ``above`` or ``below`` a bound for ``steps`` steps on end.

    With ``times_start`` the bound counts in multiples of the run's own start: the median of the metric over the first
    ``start_steps`` steps on which it was measured (see ``WatchRules``); a start of 0 has no multiples to hold against.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    times_start: bool = False
    steps: Count
    halt: bool
    remedy: str

    @model_validator(mode="after")
    def _one_side(self) -> Bound:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"{self.metric}: name either above or below; for both sides write two bounds")
        return self


class Canaries(Record):
    """The scores of fixed transcripts, which must stay what they were when they were first measured.

    ``tolerance``: how far a score may lie from that; ``tolerances``: the same for single rewards, by name, such as a
    judge that samples.
    """

    tolerance: Share
    tolerances: dict[str, Share] = Field(default_factory=dict)
    halt: bool
    remedy: str


class Unmeasured(Record):
    """Something watched that was not measured ``times`` times on end: a watch that can't see has to say so."""

    times: Count
    halt: bool
    remedy: str


class WatchRules(Record):
    """Everything that the watch goes by. ``start_steps``: the measured steps that make up a run's start."""

    name: str
    start_steps: Count
    divergence: Divergence
    bounds: tuple[Bound, ...]
    canaries: Canaries
    unmeasured: Unmeasured


def load_rules(name_or_path: str = "watch-v1") -> WatchRules:
    """Load rules by name or by path. Raises InputError naming the file, the key and the remedy."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = RULES_DIR / f"{name_or_path}.yaml"
    try:
        return WatchRules.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in RULES_DIR.glob("*.yaml")))
        raise InputError(f"watch rules {name_or_path!r}: there is no {path}; known rules: {known}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't be read as YAML: {error}") from error
    except ValidationError as error:
        raise InputError(describe_validation(error, str(path))) from error
