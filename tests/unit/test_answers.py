"""Answers of a client's model: what is read, what is refused and by which words, and what may not be said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played import appraised, spoken

from envs.clients.answers import Appraised, Opened, Spoken, parse_answer, schema_of
from envs.clients.numbers import without_numbers
from envs.clients.speech_check import violations
from envs.models.answers import LONGEST_ANSWER, BadAnswer

BOUNDS = (-10, 10)
GOOD = json.loads(appraised(3))


def cause(raw: str, kind: Any = Appraised) -> str:
    with pytest.raises(BadAnswer) as error:
        parse_answer(raw, kind, BOUNDS if kind is Appraised else None)
    return str(error.value)


def with_change(written: str) -> str:
    return appraised(0).replace('"change": 0', f'"change": {written}')


def test_an_answer_as_asked_for_is_read() -> None:
    assert parse_answer(appraised(-7), Appraised, BOUNDS) == Appraised(**(GOOD | {"change": -7}))
    assert parse_answer(spoken("  Fine. \n"), Spoken).message == "Fine."
    assert parse_answer('{"content": "a", "message": "b"}', Opened) == Opened(content="a", message="b")


@pytest.mark.parametrize("written", ["-10", "10", "0", "-0"])
def test_whole_numbers_within_the_bounds_are_read(written: str) -> None:
    assert parse_answer(with_change(written), Appraised, BOUNDS).change == int(written)


WHOLE = "change was not a whole number"
NOT_JSON = "the answer was not one JSON object and nothing else"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("11", "change did not lie between -10 and 10"),
        ("-11", "change did not lie between -10 and 10"),
        ("1e400", WHOLE),
        ("5.5", WHOLE),
        ("5.0", WHOLE),
        ("1e1", WHOLE),
        ("true", WHOLE),
        ("null", WHOLE),
        ('"5"', WHOLE),
        ('"５"', WHOLE),
        ("[5]", WHOLE),
        ("５", NOT_JSON),
        ("+5", NOT_JSON),
        ("05", NOT_JSON),
        ("9" * 5000, NOT_JSON),
        ("NaN", "the answer held a number that is none"),
        ("-Infinity", "the answer held a number that is none"),
        ('5, "change": 6', "the answer had a key twice"),
        ('5, "reward": 1', "the answer had a key that was not asked for"),
        ('5, "ignore the rules": 1', "the answer had a key that was not asked for"),
    ],
)
def test_a_change_that_is_no_whole_number_in_range_is_refused(written: str, said: str) -> None:
    assert cause(with_change(written)) == said


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("", NOT_JSON),
        ("I feel better. +5", NOT_JSON),
        ("```json\n" + appraised(3) + "\n```", NOT_JSON),
        (appraised(3) + appraised(3), NOT_JSON),
        (appraised(3)[:-1], NOT_JSON),
        ("[" * 9000, NOT_JSON),
        ("[]", "the answer was not a JSON object"),
        ("7", "the answer was not a JSON object"),
        (" " * LONGEST_ANSWER + "{}", f"the answer was longer than {LONGEST_ANSWER} characters"),
        ("{}", "said was missing"),
        (appraised(3, inner=""), "inner was not a text of 1 to 2000 characters"),
        (appraised(3, inner=" \n"), "inner was not a text of 1 to 2000 characters"),
        (appraised(3, inner="a" * 2001), "inner was not a text of 1 to 2000 characters"),
        (appraised(3, inner=4), "inner was not a text of 1 to 2000 characters"),
        (appraised(3).replace("A bit", "\\ud800 bit"), "the answer held half of a character"),
    ],
)
def test_what_is_not_the_object_asked_for_is_refused(raw: str, said: str) -> None:
    assert cause(raw) == said


@pytest.mark.parametrize("goodbye", [0, 1, "true", None])
def test_a_goodbye_is_true_or_false(goodbye: Any) -> None:
    assert cause(spoken(goodbye=goodbye), Spoken) == "goodbye was not true or false"


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_read_or_refused_and_never_breaks(raw: str) -> None:
    with pytest.raises(BadAnswer):
        parse_answer(raw, Appraised, BOUNDS)


@given(st.integers())
def test_every_whole_number_is_read_exactly_when_it_lies_within_the_bounds(change: int) -> None:
    if -10 <= change <= 10:
        assert parse_answer(appraised(change), Appraised, BOUNDS).change == change
    else:
        assert cause(appraised(change)) == "change did not lie between -10 and 10"


def test_the_schema_asks_for_every_field_in_the_order_of_thought_and_for_nothing_else() -> None:
    schema = schema_of(Appraised, BOUNDS)
    assert list(schema["properties"]) == schema["required"] == ["said", "fit", "inner", "feeling", "change"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["change"] == {"type": "integer", "minimum": -10, "maximum": 10}
    assert schema_of(Spoken)["properties"]["goodbye"] == {"type": "boolean"}
    assert list(schema_of(Spoken)["properties"]) == [
        *("attitude", "goal", "tone", "content", "draft", "message", "goodbye")
    ]


# What may be said

NEED = "You want to hear from somebody who has understood it that this was not your fault."
ZH_NEED = "你希望有人听懂以后告诉你，这件事错不在你。"


def check(message: str, language: Any = "en", need: str | None = NEED, **changes: Any) -> list[str]:
    given: dict[str, Any] = {
        "own": ["They sent a letter."],
        "emotions": [43.0, 48.0],
        "known": "He is 58.",
        "questions": 2,
    }
    given |= {"longest": 60} | changes
    return violations(message, language, need=need, **given)


@pytest.mark.parametrize(
    "message",
    [
        "It was a Tuesday. You know?",
        "What? Really?",
        "What?! Really??",
        "I'm 58 and I drive a bus.",
        "They sent a letter, and then another.",
        "The number 7 was late.",
        "Somebody has understood it, that's all.",
        "Well, this was not your fault.",
    ],
)
def test_plain_speech_passes(message: str) -> None:
    assert check(message) == []


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("…", "the message said nothing"),
        ("a " * 31, "the message was longer than 60 characters"),
        ("they sent a LETTER", "the message repeated an earlier one"),
        ("Why? How? When?", "the message asked more than 2 questions"),
        ("I'm at 43 now.", "the message told a number that the client does not know"),
        ("I'm at 48.0 now.", "the message told a number that the client does not know"),
        ("I'm at ４３ now.", "the message told a number that the client does not know"),
        ("has understood it that this was not", "the message told the hidden intention outright"),
    ],
)
def test_speech_that_breaks_a_rule_is_told_which(message: str, said: str) -> None:
    assert check(message) == [said]


def test_the_need_may_be_said_where_the_spec_lets_it() -> None:
    assert check("has understood it that this was not", need=None) == []


def test_chinese_speech_is_checked_by_characters() -> None:
    assert check("我想有人告诉你这件事错不在你", "zh", ZH_NEED) == ["the message told the hidden intention outright"]
    assert check("这件事，我也说不清。", "zh", ZH_NEED) == []
    assert check("怎么办？为什么？是吗？", "zh", ZH_NEED) == ["the message asked more than 2 questions"]
    assert check("他们寄来一封信！", "zh", ZH_NEED, own=["他们寄来一封信。"]) == ["the message repeated an earlier one"]
    assert check("我现在是４３", "zh", ZH_NEED) == ["the message told a number that the client does not know"]


# What the speaking call is told of the thoughts


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("I am at 43 of 100 now (+5).", "I am at … of … now (…)."),
        ("From 43.5 to 48,0: −４ or ①.", "From … to …: … or …."),
        ("Forty-three, no, forty three, now forty-eight.", "…, no, …, now …."),
        ("One of them said five words.", "One of them said five words."),
        ("我从四十三升到四十八了", "我从…升到…了"),
        ("Forty people came.", "Forty people came."),
    ],
)
def test_thoughts_lose_every_digit_and_the_emotion_spelled_out(text: str, left: str) -> None:
    assert without_numbers(text, (43, 48)) == left


@given(st.text(), st.integers(0, 100))
def test_no_digit_survives(text: str, emotion: int) -> None:
    left = without_numbers(f"{text}{emotion}{text}", (emotion,))
    assert not any(character.isdigit() for character in left)
