"""More than five hundred answers of a judge that can't be used: no crash, no number made up, each under its cause."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import dialogue, in_turn, judged, rated, rubric

from rewards.judge import Judge
from rewards.judgments import JudgeRules
from rewards.rubric_reward import score_of
from rewards.verdicts import Cause
from tests.malformed_verdicts import PATH, REPLIES, lines

ROWS: list[dict[str, Any]] = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
TWO = rubric()
TALK = dialogue(*REPLIES)
ONCE = Judge(TWO, JudgeRules(attempts=1))


def raw_of(row: dict[str, Any]) -> str:
    """The answer, with the megabytes that the file leaves out."""
    text, times = row.get("grow", ("@", 1))
    return row["raw"].replace("@", text * times)


def test_the_corpus_is_what_its_seed_makes() -> None:
    assert PATH.read_text(encoding="utf-8").splitlines() == lines()


def test_there_are_more_than_five_hundred_that_differ_under_every_cause_of_a_bad_answer() -> None:
    assert len(ROWS) >= 500 and len({row["raw"] for row in ROWS}) == len(ROWS)
    found = {cause for row in ROWS for cause in row["causes"].values() if cause}
    of_the_talk = {Cause.NO_ANSWER, Cause.FAILED_DIALOGUE, Cause.NOTHING_SAID, Cause.UNSUPPORTED_LANGUAGE}
    assert found == set(Cause) - of_the_talk - {Cause.EMPTY_EVIDENCE}  # tried in test_judge_fence.py
    assert min(Counter(row["kind"] for row in ROWS).values()) >= 3
    assert max(len(raw_of(row)) for row in ROWS) >= 1_000_000


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in ROWS}))
def test_a_malformed_answer_is_counted_under_its_cause_and_no_number_is_made_of_it(kind) -> None:
    for row in [row for row in ROWS if row["kind"] == kind]:
        judgment = judged(ONCE, TALK, in_turn(raw_of(row)))
        (opinion,) = judgment.opinions
        found = {axis: reading.cause and reading.cause.value for axis, reading in opinion.axes.items()}
        assert found == row["causes"] and any(found.values()), row["id"]
        for axis in judgment.verdicts[0].axes:
            cause = row["causes"][axis.axis]
            assert (axis.score is None) is (axis.level is None) is bool(cause), row["id"]
            assert axis.causes == ({cause: 1} if cause else {}), row["id"]
        assert set(judgment.causes) == {cause for cause in row["causes"].values() if cause}, row["id"]
        assert score_of(judgment, TWO).value is None, row["id"]


def test_after_a_malformed_answer_a_good_one_is_taken_and_the_cause_stays_counted() -> None:
    for row in ROWS[::5]:
        judgment = judged(Judge(TWO), TALK, in_turn(raw_of(row), rated(5, 5)))
        assert score_of(judgment, TWO).value is not None, row["id"]
        assert judgment.causes and len(judgment.opinions[0].calls) == 2, row["id"]


@settings(deadline=None, max_examples=150)
@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["warmth", "sense", "level", "x"]), inner),
    ).map(json.dumps)
)
def test_whatever_is_answered_there_is_a_level_of_the_scale_or_a_cause(raw) -> None:
    for reading in judged(ONCE, TALK, in_turn(raw)).opinions[0].axes.values():
        assert (reading.level is None) is (reading.cause is not None)
        assert reading.level in {None, 1, 2, 3, 4, 5}
