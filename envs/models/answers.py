"""A model's answer in JSON, read strictly: one object and nothing else, each key once, no number that is none.

What isn't that is a bad answer, which is asked for again; nothing is mended or guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LONGEST_ANSWER = 20_000  # characters


class BadAnswer(ValueError):
    """An answer that can't be used. ``str()`` is the cause, in fixed words: it holds nothing that a model wrote.

    ``word`` is the same as a code to count by.
    """

    def __init__(self, cause: str, word: str = "unusable") -> None:
        super().__init__(cause)
        self.word = word


def read_object(raw: str) -> dict[str, Any]:
    """The JSON object that ``raw`` is.

    Raises BadAnswer: too_long, not_json, duplicate_key, not_finite (NaN and Infinity spelled out), not_an_object, or
    half_character (an unpaired surrogate). A number too large for a float, such as 1e400, is read as infinity.
    """
    if len(raw) > LONGEST_ANSWER:
        raise BadAnswer(f"the answer was longer than {LONGEST_ANSWER} characters", "too_long")
    try:
        data = json.loads(raw, object_pairs_hook=_once, parse_constant=_no_constant)
    except BadAnswer:
        raise
    except (ValueError, RecursionError):
        raise BadAnswer("the answer was not one JSON object and nothing else", "not_json") from None
    if not isinstance(data, dict):
        raise BadAnswer("the answer was not a JSON object", "not_an_object")
    if _unpaired(data):
        raise BadAnswer("the answer held half of a character", "half_character")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise BadAnswer("the answer had a key twice", "duplicate_key")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise BadAnswer("the answer held a number that is none", "not_finite")


def _unpaired(value: Any) -> bool:
    """Whether any text in ``value``, keys included, has a surrogate without its other half."""
    texts, waiting = [], [value]
    while waiting:  # no recursion: what was read may be as deep as the reader goes
        found = waiting.pop()
        if isinstance(found, str):
            texts.append(found)
        elif isinstance(found, Mapping):
            waiting += [*found.keys(), *found.values()]
        elif isinstance(found, list):
            waiting += found
    return any(0xD800 <= ord(character) <= 0xDFFF for text in texts for character in text)
