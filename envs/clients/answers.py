"""Answers of a client's model, read strictly: what isn't exactly what was asked for is a bad answer, asked for again.

The JSON schemas are written out here and not derived, because they are part of every recorded prompt's hash.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import StrictBool, StrictInt, StringConstraints, ValidationError

from envs.llm_rules import LONGEST_TEXT
from envs.models.answers import BadAnswer, read_object
from envs.trajectory import Record

SAID = ("draft", "message")  # what is said; the other texts are thoughts

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=LONGEST_TEXT)]
Part = TypeVar("Part", bound=Record)


class Appraised(Record):
    """What the client made of a reply: what was said, how it fits goal and hidden intention, what goes on inside, what
    is felt, and by how many points of emotion that changes."""

    said: Text
    fit: Text
    inner: Text
    feeling: Text
    change: StrictInt


class Spoken(Record):
    """What the client says and how it came to it; ``goodbye``: with this message it takes its leave."""

    attitude: Text
    goal: Text
    tone: Text
    content: Text
    draft: Text
    message: Text
    goodbye: StrictBool


class Opened(Record):
    """The first message of a talk, generated."""

    content: Text
    message: Text


def schema_of(
    kind: type[Record],
    change_bounds: tuple[int, int] | None = None,
    longest_thought: int = LONGEST_TEXT,
    longest_message: int = LONGEST_TEXT,
) -> dict[str, Any]:
    """The JSON schema of ``kind``; its fields come in the order in which they are thought. ``change_bounds``: the
    lowest and the highest change. Lengths in characters: a model that doesn't find an end is stopped by them."""
    properties: dict[str, Any] = {}
    for name in kind.model_fields:
        longest = longest_message if name in SAID else longest_thought
        properties[name] = {"type": "string", "minLength": 1, "maxLength": longest}
    if "goodbye" in properties:
        properties["goodbye"] = {"type": "boolean"}
    if "change" in properties:
        properties["change"] = {"type": "integer"}
        if change_bounds:
            properties["change"] |= {"minimum": change_bounds[0], "maximum": change_bounds[1]}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def parse_answer(raw: str, kind: type[Part], change_bounds: tuple[int, int] | None = None) -> Part:
    """Read ``raw`` as ``kind``.

    Raises BadAnswer: no JSON object, a key twice, missing or unknown, a wrong type (a whole number is written as one:
    no true, no 5.0, no "5", no NaN), an unpaired surrogate, or a change out of bounds.
    """
    data = read_object(raw)
    try:
        answer = kind.model_validate(data)
    except ValidationError as error:
        raise BadAnswer(_cause(error, kind)) from None
    change = getattr(answer, "change", None)
    if change_bounds and change is not None and not change_bounds[0] <= change <= change_bounds[1]:
        raise BadAnswer(f"change did not lie between {change_bounds[0]} and {change_bounds[1]}")
    return answer


def _cause(error: ValidationError, kind: type[Record]) -> str:
    problem = error.errors()[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    if key not in kind.model_fields:  # the model's own word, which is not repeated to it
        return "the answer had a key that was not asked for"
    if problem["type"] == "missing":
        return f"{key} was missing"
    wanted = {"change": "a whole number", "goodbye": "true or false"}
    return f"{key} was not {wanted.get(key, f'a text of 1 to {LONGEST_TEXT} characters')}"
