"""The rubric reward: weights only where a certificate allows, None propagation, shares per turn, and the record."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import FAILED, REPLIES, chosen, dialogue, in_turn, judged, rated, rubric

from envs.trajectory import Score, Trajectory
from rewards.certificate import KEY_VARIABLE, Certificate, Data, Subject
from rewards.certify import Settings, audit
from rewards.judge import Judge
from rewards.judgments import Comparison, JudgeRules, Judgment, digest_of, judgment_line, read_judgments
from rewards.ratings import Columns, read_ratings
from rewards.rubric import load_rubric
from rewards.rubric_reward import (
    AskedJudgments,
    RecordedJudgments,
    RubricReward,
    Source,
    first_wins_of,
    score_of,
    standing_of,
    wins_by_order,
)
from rewards.rubric_reward import Subject as Asked

TWO, BY_TURN = rubric(), rubric("turn")  # warmth counts 1, sense counts 3
JUDGE = Judge(TWO)
EN = JUDGE.prompt_hash("en")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of a judge ``says`` that follows people on warmth, and always says 5 on sense."""
    folder, draw = tmp_path_factory.mktemp("ratings"), np.random.default_rng(0)
    lines = {"human": ["conversation_id,responder,warmth,sense"], "judge": ["conversation_id,responder,warmth,sense"]}
    for at in range(240):
        warmth, sense = np.clip(np.round(draw.normal(size=2) + at % 6 / 2 + 2), 1, 5).astype(int)
        lines["human"].append(f"{at // 6},r{at % 6},{warmth},{sense}")
        lines["judge"].append(f"{at // 6},r{at % 6},{warmth},5")
    for name, rows in lines.items():
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    ratings = read_ratings(folder / "human.csv", folder / "judge.csv", Columns())
    subject = Subject(name="judge", model="says", prompt_hash=EN, rubric=TWO.name, rubric_hash=TWO.hash)
    data = Data(human="human.csv", human_sha256="0" * 64, judge="judge.csv", judge_sha256="1" * 64)
    return Certificate.sign(subject, data, audit(ratings, Settings(resamples=100, low=1, high=5)))


def reward(
    find: Source, certificates: Sequence[Certificate] = (), uncertified: bool = False, judge: Judge = JUDGE
) -> RubricReward:
    return RubricReward(judge, find, ["says"], ["en"], certificates, uncertified=uncertified)


def of(judgment: Judgment | None) -> Source:
    """A source that has one judgment."""

    async def find(trajectory: Trajectory) -> Judgment | None:
        return judgment

    return find


def value(found: RubricReward, talk: Trajectory | None = None) -> Score:
    return asyncio.run(found.score(talk or dialogue()))


# Weights


def test_an_axis_carries_weight_only_where_a_certificate_passes(certificate) -> None:
    found = reward(of(judged(JUDGE, dialogue(), in_turn(rated(4, 1)))), [certificate])
    assert found.standing.weights == {"warmth": 1, "sense": 0} and not found.standing.read_only
    assert list(found.standing.refused) == ["sense"] and "does not pass on sense" in found.standing.refused["sense"]
    score = value(found)
    assert (score.name, score.value) == ("rubric-two", 0.75)  # warmth 4 of 1 to 5; sense counts for nothing
    assert score.evidence == f"warmth 4 “{REPLIES[0]}”; sense 1 “{REPLIES[0]}” [read-only]"


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (Asked("another", EN), "for another model"),
        (Asked("says", JUDGE.prompt_hash("zh")), "for another prompt"),
    ],
)
def test_another_model_or_prompt_is_not_covered(certificate, subject, said) -> None:
    standing = standing_of(TWO, [subject], [certificate])
    assert standing.read_only and said in standing.refused["warmth"]
    assert standing_of(TWO, [Asked("says", EN), subject], [certificate]).read_only  # every one has to be covered


def test_another_rubric_is_not_covered(certificate) -> None:
    other = rubric(weights=(1, 2))
    assert "another rubric" in standing_of(other, [Asked("says", EN)], [certificate]).refused["warmth"]


def test_without_a_certificate_the_reward_is_read_only_and_has_no_value() -> None:
    found = reward(of(judged(JUDGE, dialogue(), in_turn(rated(4, 1)))))
    assert found.standing.read_only and set(found.standing.refused.values()) == {"there is no certificate"}
    score = value(found)
    assert score.value is None and score.evidence.count("[read-only]") == 2


def test_uncertified_gives_every_axis_its_weight() -> None:
    found = reward(of(judged(JUDGE, dialogue(), in_turn(rated(4, 1)))), uncertified=True)
    assert found.standing.weights == {"warmth": 1, "sense": 3} and not found.standing.refused
    assert value(found).value == pytest.approx((0.75 + 3 * 0) / 4)


# Scores


def test_a_weighted_axis_that_could_not_be_measured_leaves_no_value_and_a_read_only_one_does_no_harm() -> None:
    judgment = judged(Judge(TWO, JudgeRules(attempts=1)), dialogue(), in_turn(rated(4, True)))
    assert score_of(judgment, TWO).value is None
    assert "sense None (boolean)" in score_of(judgment, TWO).evidence
    assert score_of(judgment, TWO, {"warmth": 1.0, "sense": 0.0}).value == 0.75


def by_turn(*answers: str | None) -> Judgment:
    return judged(Judge(BY_TURN, JudgeRules(attempts=1)), dialogue(), in_turn(*answers))


def test_shares_of_the_turns_add_up_to_the_value() -> None:
    score = score_of(by_turn(rated(5, 1), rated(3, 3, evidence=REPLIES[1])), BY_TURN)
    assert score.per_turn == pytest.approx((0.25 / 2, 0.5 / 2))  # (1 + 3 * 0) / 4, and 0.5
    assert score.value == pytest.approx(0.375)
    assert score.evidence.startswith("turn 1 warmth 5 “That letter")


def test_a_reply_that_could_not_be_judged_has_no_share_and_the_dialogue_no_value() -> None:
    score = score_of(by_turn(rated(5, 1), "no"), BY_TURN)
    assert score.value is None and score.per_turn == (pytest.approx(0.125), None)


def test_a_dialogue_that_was_not_judged_has_no_value_and_says_why() -> None:
    score = score_of(judged(JUDGE, FAILED, in_turn(rated())), TWO)
    assert (score.value, score.evidence) == (None, "not judged: failed_dialogue")


def test_a_judgment_by_another_rubric_is_refused() -> None:
    with pytest.raises(ValueError, match="another rubric"):
        score_of(judged(JUDGE, dialogue(), in_turn(rated())), rubric(weights=(1, 1)))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 5), st.floats(0.01, 5))
def test_the_value_is_the_weighted_mean_and_lies_in_the_unit_range(warmth, sense, one, other) -> None:
    judgment = judged(JUDGE, dialogue(), in_turn(rated(warmth, sense)))
    score = score_of(judgment, TWO, {"warmth": one, "sense": other})
    expected = (one * (warmth - 1) / 4 + other * (sense - 1) / 4) / (one + other)
    assert score.value == pytest.approx(expected) and score.value is not None and 0 <= score.value <= 1


# Pairs


def test_the_axes_of_a_comparison_are_weighed_as_those_of_a_rating() -> None:
    other = "You will get over it."
    answers = chosen("first", "second", REPLIES[0], other), chosen("second", "tie", other, REPLIES[0])
    pair = dialogue(), dialogue(other, seed=1)
    found: Comparison = asyncio.run(JUDGE.compare(*pair, [in_turn(*answers)], "en"))
    weights = {"warmth": 1.0, "sense": 3.0}  # warmth: 1 and 1; sense: 0 and 0.5
    assert first_wins_of(found, weights) == pytest.approx((1 + 3 * 0.25) / 4)
    assert wins_by_order(found, weights) == pytest.approx((1 / 4, (1 + 3 * 0.5) / 4))
    missing: Comparison = asyncio.run(JUDGE.compare(*pair, [in_turn(None)], "en"))
    assert first_wins_of(missing, weights) is None and wins_by_order(missing, weights) == (None, None)


# Where judgments come from


def test_a_judgment_is_handed_on_before_it_is_scored_and_the_record_gives_the_same_score(tmp_path) -> None:
    kept: list[Judgment] = []
    asked = AskedJudgments(JUDGE, lambda talk: [in_turn("no", rated(4, 2))], lambda talk: "en", kept.append)
    live = value(reward(asked, uncertified=True))
    path = tmp_path / "judgments.jsonl"
    path.write_text("".join(f"{judgment_line(one)}\n" for one in kept), encoding="utf-8")
    recorded = RecordedJudgments(read_judgments(path), TWO)
    assert value(reward(recorded, uncertified=True)) == live and live.value == pytest.approx(0.375)
    assert value(reward(recorded, uncertified=True), dialogue(seed=9)).evidence == (
        "the record holds no judgment of this dialogue"
    )


def test_a_record_that_its_answers_do_not_bring_back_is_refused() -> None:
    judgment = judged(JUDGE, dialogue(), in_turn(rated(4, 2)))
    better = judgment.verdicts[0].model_copy(update={"axes": judgment.verdicts[0].axes[:1] * 2})
    forged = judgment.model_copy(update={"verdicts": (better,)})
    recorded = RecordedJudgments({digest_of(dialogue()): forged}, TWO)
    with pytest.raises(ValueError, match="is not what its recorded answers come to"):
        value(reward(recorded, uncertified=True))


@pytest.mark.parametrize(
    ("judgment", "said"),
    [
        (judged(JUDGE, dialogue(), in_turn(rated(), model="stranger")), "stranger or its prompt was not named"),
        (judged(Judge(TWO, JudgeRules(seed=3)), dialogue(), in_turn(rated())), "it was made by other rules"),
    ],
)
def test_a_judgment_by_somebody_else_has_no_value(judgment, said) -> None:
    score = value(reward(of(judgment), uncertified=True))
    assert score.value is None and said in score.evidence


def test_a_reward_bears_the_name_of_its_rubric() -> None:
    assert reward(of(None), judge=Judge(load_rubric("kardia"))).name == "rubric-kardia"
