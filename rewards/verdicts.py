"""A judge's raw answers, read strictly: a level for each axis with words of the supporter that it rests on.

Nothing is mended and no number is made up: an axis that can't be read has a cause in the place of a level. The JSON
schemas are written out here and not derived, because they are part of every recorded prompt's hash.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from functools import cache
from typing import Any, Literal

import yaml

from envs.models.answers import BadAnswer, read_object
from envs.perception.text import TOKEN
from envs.trajectory import Record
from rewards.judge_prompts import FOLDER
from rewards.rubric import Rubric, Scale

LEAST_WORDS = 3  # words, or Han characters, of a quote that is not a whole message
LONGEST_TEXT = 2_000  # characters of a quote or a reason, whatever was asked for
QUOTES = str.maketrans(dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»「」『』", '"'))
Side = Literal["first", "second", "tie"]
Evidence = Literal["quote", "number"]


class Cause(StrEnum):
    """Why a judge's answer, or its verdict on one axis, could not be used; or why a judge was not asked at all."""

    TOO_LONG = "too_long"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    DUPLICATE_KEY = "duplicate_key"
    NOT_FINITE = "not_finite"
    HALF_CHARACTER = "half_character"
    EXTRA_KEY = "extra_key"
    MISSING = "missing"
    BOOLEAN = "boolean"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    NO_EVIDENCE = "no_evidence"
    NOT_QUOTED = "not_quoted"
    EMPTY_EVIDENCE = "empty_evidence"
    READY_MADE = "ready_made"
    NO_ANSWER = "no_answer"
    FAILED_DIALOGUE = "failed_dialogue"
    NOTHING_SAID = "nothing_said"
    UNSUPPORTED_LANGUAGE = "unsupported_language"


class Reading(Record):
    """What one answer says of one axis: a level with its evidence, or a cause."""

    level: int | None = None
    evidence: str = ""
    cause: Cause | None = None


class PairReading(Record):
    """What one answer says of one axis of two talks: which is better, with words from each, or a cause."""

    better: Side | None = None
    evidence: tuple[str, str] = ("", "")
    cause: Cause | None = None


class Unusable(Exception):
    """One field of an answer, such as an axis of a rubric, can't be used."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause


def rating_schema(
    rubric: Rubric, longest_quote: int, longest_reason: int, replies: int | None = None
) -> dict[str, Any]:
    """The JSON schema of an answer that rates; lengths in characters. Evidence comes before the level it leads to:
    a quote, or, of so many ``replies``, the number of one (None: a quote)."""
    level = {"type": "integer", "minimum": rubric.scale.low, "maximum": rubric.scale.high}
    evidence = _evidence_schema(longest_quote, replies)
    fields = {"evidence": evidence, "reason": _text(longest_reason), "level": level}
    return _object({axis.name: _object(fields) for axis in rubric.axes})


def pair_schema(
    rubric: Rubric, longest_quote: int, longest_reason: int, replies: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The JSON schema of an answer that compares two talks; ``replies`` as above, of each talk."""
    first, second = (_evidence_schema(longest_quote, count) for count in replies or (None, None))
    fields = {"first": first, "second": second, "reason": _text(longest_reason)}
    better = {"type": "string", "enum": ["first", "second", "tie"]}
    return _object({axis.name: _object(fields | {"better": better}) for axis in rubric.axes})


def _evidence_schema(longest_quote: int, replies: int | None) -> dict[str, Any]:
    return _text(longest_quote) if replies is None else {"type": "integer", "minimum": 1, "maximum": replies}


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_rating(raw: str, rubric: Rubric, replies: Sequence[str], evidence: Evidence = "quote") -> dict[str, Reading]:
    """A reading for each axis of the rubric. ``replies``: the supporter's words that may be quoted, as the judge saw
    them; with ``evidence`` "number" the reply that is named stands as the quote.

    Raises BadAnswer, whose ``word`` is a Cause, when the answer can't be used for any axis.
    """
    data = _answer(raw, rubric, replies)
    found: dict[str, Reading] = {}
    for axis in rubric.axes:
        try:
            fields = fields_of(data, axis.name, ("evidence", "reason", "level"))
            level = _level(fields["level"], rubric.scale)
            _required_text(fields["reason"])
            quote = checked_quote(
                _named(fields["evidence"], replies, evidence), replies, earns=level > rubric.scale.low
            )
            found[axis.name] = Reading(level=level, evidence=quote)
        except Unusable as error:
            found[axis.name] = Reading(cause=error.cause)
    return found


def read_pair(
    raw: str, rubric: Rubric, replies: tuple[Sequence[str], Sequence[str]], evidence: Evidence = "quote"
) -> dict[str, PairReading]:
    """A reading for each axis of two talks, in the order in which they were shown. Raises BadAnswer."""
    data = _answer(raw, rubric, [*replies[0], *replies[1]])
    found: dict[str, PairReading] = {}
    for axis in rubric.axes:
        try:
            fields = fields_of(data, axis.name, ("first", "second", "reason", "better"))
            better = _side(fields["better"])
            _required_text(fields["reason"])
            quotes = tuple(
                checked_quote(_named(fields[side], said, evidence), said, earns=better == side)
                for side, said in zip(("first", "second"), replies, strict=True)
            )
            found[axis.name] = PairReading(better=better, evidence=(quotes[0], quotes[1]))
        except Unusable as error:
            found[axis.name] = PairReading(cause=error.cause)
    return found


def _answer(raw: str, rubric: Rubric, replies: Sequence[str]) -> dict[str, Any]:
    data = read_object(raw)
    if data.keys() - {axis.name for axis in rubric.axes}:
        raise BadAnswer("the answer had a key that was not asked for", Cause.EXTRA_KEY)
    said = [plain(reply) for reply in replies]
    given = [one["reason"] for one in data.values() if isinstance(one, dict) and isinstance(one.get("reason"), str)]
    reasons = [plain(reason) for reason in given if reason.strip()]
    # A verdict whose reasons stand in a reply was written by the one who is judged; its quotes stand there rightly.
    if reasons and all(any(reason in reply for reply in said) for reason in reasons):
        raise BadAnswer("the answer was taken from the talk, word for word", Cause.READY_MADE)
    return data


def fields_of(data: dict[str, Any], axis: str, names: Sequence[str]) -> dict[str, Any]:
    """The object under ``axis``, which has the keys ``names`` and no other. Raises Unusable."""
    if axis not in data:
        raise Unusable(Cause.MISSING)
    fields = data[axis]
    if isinstance(fields, bool):
        raise Unusable(Cause.BOOLEAN)
    if not isinstance(fields, dict):
        raise Unusable(Cause.NOT_FINITE if _infinite(fields) else Cause.WRONG_TYPE)
    if fields.keys() - set(names):
        raise Unusable(Cause.EXTRA_KEY)
    if set(names) - fields.keys():
        raise Unusable(Cause.MISSING)
    return fields


def _level(value: Any, scale: Scale) -> int:
    if isinstance(value, bool):
        raise Unusable(Cause.BOOLEAN)
    if _infinite(value):
        raise Unusable(Cause.NOT_FINITE)
    if not isinstance(value, int):
        raise Unusable(Cause.WRONG_TYPE)
    if not scale.low <= value <= scale.high:
        raise Unusable(Cause.OUT_OF_RANGE)
    return value


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _side(value: Any) -> Side:
    if isinstance(value, bool):
        raise Unusable(Cause.BOOLEAN)
    if not isinstance(value, str):
        raise Unusable(Cause.WRONG_TYPE)
    sides: tuple[Side, ...] = ("first", "second", "tie")
    for side in sides:
        if value == side:
            return side
    raise Unusable(Cause.OUT_OF_RANGE)


def _required_text(value: Any) -> str:
    if isinstance(value, bool):
        raise Unusable(Cause.BOOLEAN)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_TEXT:
        raise Unusable(Cause.WRONG_TYPE)
    return value


def _named(value: Any, replies: Sequence[str], evidence: Evidence) -> Any:
    """The evidence as a text: itself, or the reply whose number it is, from 1."""
    if evidence == "quote":
        return value
    if isinstance(value, bool):
        raise Unusable(Cause.BOOLEAN)
    if not isinstance(value, int):
        raise Unusable(Cause.WRONG_TYPE)
    if not 1 <= value <= len(replies):
        raise Unusable(Cause.OUT_OF_RANGE)
    return replies[value - 1]


def checked_quote(value: Any, replies: Sequence[str], earns: bool) -> str:
    """The quote, checked: it stands in one reply, and where it ``earns`` anything it says more than a master key.

    Where the replies hold nothing to be quoted, the lowest level needs no quote; any other can't have one. Raises
    Unusable.
    """
    if isinstance(value, str) and not earns and all(says_nothing(reply) for reply in replies):
        return ""
    if isinstance(value, str) and not value.strip():
        raise Unusable(Cause.NO_EVIDENCE)
    quote, said = _bare(_required_text(value)), [plain(reply) for reply in replies]
    whole = any(quote == _bare(reply) for reply in replies)
    if not whole and not any(quote in reply for reply in said):
        raise Unusable(Cause.NOT_QUOTED)
    if not whole and len(TOKEN.findall(quote)) < LEAST_WORDS:
        raise Unusable(Cause.NO_EVIDENCE)
    if earns and says_nothing(quote):
        raise Unusable(Cause.EMPTY_EVIDENCE)
    return value


def says_nothing(text: str) -> bool:
    """Whether ``text`` holds no word, or nothing but a known master key."""
    words = tuple(TOKEN.findall(plain(text)))
    return not words or words in _master_keys()


@cache
def _master_keys() -> frozenset[tuple[str, ...]]:
    keys = yaml.safe_load((FOLDER / "master_keys.yaml").read_text(encoding="utf-8"))
    return frozenset(tuple(TOKEN.findall(plain(key))) for key in keys)


def plain(text: str) -> str:
    """``text`` in compatible forms, with one kind of quotation mark, single spaces and small letters."""
    return " ".join(unicodedata.normalize("NFKC", text.translate(QUOTES)).translate(QUOTES).casefold().split())


def _bare(text: str) -> str:
    """``text`` in plain form, without the marks that people set around a quote."""
    return re.sub(r"^(?:[\"'\s]|\.\.\.)+|(?:[\"'\s]|\.\.\.)+$", "", plain(text))
