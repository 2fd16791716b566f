"""Rewards: the emotion reward telescopes, and what could not be measured stays None up to the total."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.trajectory import Score, Stop, Trajectory
from rewards.emotion import EmotionReward
from rewards.reward import scored, weighted_total
from tests.unit.dialogues import card, trajectory

WHO = card("en-who")


def emotion_of(dialogue: Trajectory) -> Score:
    return asyncio.run(EmotionReward().score(dialogue))


def values(*given: float | None) -> list[Score]:
    return [Score(name=str(number), value=value) for number, value in enumerate(given)]


class Fixed:
    """A reward that gives the same value to every dialogue."""

    def __init__(self, name: str, value: float | None) -> None:
        self.name, self.value = name, value

    async def score(self, trajectory: Trajectory) -> Score:
        return Score(name=self.name, value=self.value)


def test_the_reward_is_the_final_emotion_over_a_hundred():
    score = emotion_of(trajectory(WHO, 0, [45, 41, 63]))
    assert (score.name, score.value) == ("emotion", 0.63)
    assert score.evidence == "emotion after each turn: 40 45 41 63"


def test_each_turn_is_given_its_own_change():
    assert emotion_of(trajectory(WHO, 0, [45, 41, 63])).per_turn == pytest.approx((0.05, -0.04, 0.22))


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_the_changes_of_the_turns_add_up_to_the_whole_way(emotions: Sequence[float]):
    score = emotion_of(trajectory(WHO, 0, emotions))
    assert score.per_turn is not None and len(score.per_turn) == len(emotions)
    assert sum(part or 0 for part in score.per_turn) == pytest.approx((emotions[-1] - 40) / 100)
    assert score.value == emotions[-1] / 100


def test_an_emotion_of_nought_is_a_measured_nought():
    assert emotion_of(trajectory(WHO, 0, [0], stop=Stop.FAILURE)).value == 0


def test_a_failed_dialogue_has_no_value_and_says_why():
    score = emotion_of(trajectory(WHO, 0, [45], stop=Stop.ERROR))
    assert (score.value, score.per_turn) == (None, None)
    assert score.evidence == "the dialogue failed: RunError: the server is gone"


def test_a_dialogue_that_never_opened_has_no_value():
    unopened = trajectory(WHO, 0, [], stop=Stop.ERROR).model_copy(update={"opening": None})
    assert emotion_of(unopened).value is None


@pytest.mark.parametrize(
    ("parts", "weights", "total"),
    [
        ((0.8,), (1,), 0.8),
        ((0.8, 0.2), (3, 1), 0.65),  # (2.4 + 0.2) / 4
        ((0.8, 0.2), (0.75, 0.25), 0.65),
        ((0.8, 0.2), (1, 0), 0.8),
        ((0.0, 0.0), (1, 1), 0.0),
        ((None, 0.2), (1, 1), None),
        ((0.8, None), (1, 0.01), None),
        ((0.8, None), (1, 0), 0.8),
        ((None,), (1,), None),
        ((0.8, 0.2), (0, 0), None),
        ((), (), None),
    ],
)
def test_the_total_is_the_weighted_mean_and_none_where_a_weighted_part_is_missing(parts, weights, total):
    found = weighted_total(values(*parts), weights)
    assert found is None if total is None else found == pytest.approx(total)


def test_a_weight_for_each_score_is_asked_for():
    with pytest.raises(ValueError, match="zip"):
        weighted_total(values(0.5, 0.5), [1])


@settings(deadline=None)
@given(st.lists(st.tuples(st.none() | st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 2.0])), max_size=5))
def test_a_total_is_missing_exactly_when_a_weighted_part_is_and_never_leaves_the_range(pairs):
    total = weighted_total(values(*(value for value, _ in pairs)), [weight for _, weight in pairs])
    weighted = [value for value, weight in pairs if weight > 0]
    assert (total is None) is (not weighted or None in weighted)
    assert total is None or -1e-9 <= total <= 1 + 1e-9


def test_a_trajectory_is_scored_with_every_reward_and_keeps_them_in_order():
    dialogue = trajectory(WHO, 0, [50])
    result = asyncio.run(
        scored(dialogue, [(EmotionReward(), 1.0), (Fixed("judge", 1.0), 3.0), (Fixed("gate", None), 0)])
    )
    assert [score.name for score in result.scores] == ["emotion", "judge", "gate"]
    assert result.trajectory == dialogue and result.total == pytest.approx(0.875)  # (0.5 + 3) / 4


def test_the_total_of_a_failed_dialogue_is_none_however_good_the_rest():
    failed = trajectory(WHO, 0, [50], stop=Stop.ERROR)
    assert asyncio.run(scored(failed, [(EmotionReward(), 0.1), (Fixed("judge", 1.0), 3.0)])).total is None
