"""Rubrics: what a judge is asked, as data in ``configs/rubrics/*.yaml``.

An axis has a question and a text for every level of the scale, in each of the rubric's languages, so that no level is
left to the judge's taste. A rubric is hashed over its content; certificates and records name that hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from envs.cards import Language
from envs.errors import InputError
from envs.hashing import content_hash
from envs.marked_yaml import Place, Problem, Problems, load_marked

RUBRICS_DIR = Path(__file__).resolve().parent.parent / "configs" / "rubrics"

Text = Annotated[str, Field(min_length=1)]
Scope = Literal["dialogue", "turn"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)


class Scale(_Part):
    """Whole levels from ``low`` to ``high``."""

    low: StrictInt
    high: StrictInt

    @model_validator(mode="after")
    def _in_order(self) -> Scale:
        if not 1 <= self.high - self.low <= 10:
            raise ValueError(f"low {self.low} and high {self.high} must leave 2 to 11 levels")
        return self


class Axis(_Part):
    """One thing that is judged. ``levels``: what each level looks like. ``weight`` is relative to the other axes'."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z_]*$")]
    weight: Annotated[float, Field(ge=0)] = 1.0
    question: dict[Language, Text]
    levels: dict[StrictInt, dict[Language, Text]]


class Rubric(_Part):
    """What a judge is asked about a whole dialogue or about one reply. ``sources``: where its axes come from."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    title: Text
    scope: Scope
    languages: Annotated[tuple[Language, ...], Field(min_length=1)]
    scale: Scale
    sources: Annotated[tuple[Text, ...], Field(min_length=1)]
    axes: Annotated[tuple[Axis, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _complete(self) -> Rubric:
        names = [axis.name for axis in self.axes]
        problems: list[Problem] = []
        for at, axis in enumerate(self.axes):
            problems += [(("axes", at, *place), message) for place, message in _gaps(axis, self)]
            if axis.name in names[:at]:
                problems.append((("axes", at, "name"), f"two axes are called {axis.name!r}; rename one"))
        if not any(axis.weight for axis in self.axes):
            problems.append((("axes",), "every axis has weight 0; give one a weight above it"))
        if problems:
            raise Problems(problems)
        return self

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the whole content."""
        return content_hash(self.model_dump(mode="json"))

    def axis(self, name: str) -> Axis:
        """The axis called ``name``. Raises InputError with the likeliest name."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise InputError(
            f"rubric {self.name}: there is no axis {name!r}; {_instead(name, [a.name for a in self.axes])}"
        )

    def unit(self, level: float) -> float:
        """A level as a share in [0, 1] of the scale."""
        return (level - self.scale.low) / (self.scale.high - self.scale.low)


def _gaps(axis: Axis, rubric: Rubric) -> Iterator[Problem]:
    """Where an axis lacks a level of the scale, a language, or a difference between two levels."""
    wanted = range(rubric.scale.low, rubric.scale.high + 1)
    for level in wanted:
        if level not in axis.levels:
            yield ("levels",), f"level {level} has no text; add it"
    yield from _languages(("question",), axis.question, rubric.languages)
    read: dict[tuple[str, str], int] = {}
    for level, texts in axis.levels.items():
        if level not in wanted:
            yield ("levels", level), f"is not on the scale {wanted[0]} to {wanted[-1]}; remove it"
        yield from _languages(("levels", level), texts, rubric.languages)
        for language, text in texts.items():
            like = read.setdefault((language, text), level)
            if like != level:
                yield ("levels", level, language), f"reads like level {like}; say what tells them apart"


def _languages(place: Place, texts: Mapping[Language, str], wanted: Sequence[Language]) -> Iterator[Problem]:
    for language in wanted:
        if language not in texts:
            yield place, f"lacks the language {language}; add it"
    for language in texts:
        if language not in wanted:
            yield (*place, language), "is not among the rubric's languages; remove it or add it there"


def rubric_file(name_or_path: str) -> Path:
    """Where a rubric's file lies; it need not be there."""
    path = Path(name_or_path)
    return path if path.suffix in {".yaml", ".yml"} else RUBRICS_DIR / f"{name_or_path}.yaml"


def load_rubric(name_or_path: str) -> Rubric:
    """Load a rubric by name (``kardia``) or by path. Raises InputError naming the file, the line and the remedy."""
    path = rubric_file(name_or_path)
    try:
        return load_marked(path, Rubric)
    except FileNotFoundError:
        known = sorted(one.stem for one in RUBRICS_DIR.glob("*.yaml"))
        raise InputError(f"rubric {name_or_path!r}: there is no {path}; {_instead(path.stem, known)}") from None


def _instead(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
