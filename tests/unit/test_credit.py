from __future__ import annotations

import pytest
import torch

from envs.trajectory import Score
from trainers.credit import GroupRelative, TokenBatch, ValueBased


def score(value: float | None, *changes: float, parts: tuple[Score, ...] = ()) -> Score:
    return Score(name="emotion", value=value, per_turn=changes or None, parts=parts)


def test_a_total_that_could_not_be_measured_is_left_out_of_its_group():
    credit = GroupRelative(4, scale="none").assign([None, 1, 0, 1])
    assert credit.advantages == pytest.approx([0, 1 / 3, -2 / 3, 1 / 3])


def test_advantages_are_divided_by_the_standard_deviation_of_the_group():
    # Mean 0.5; deviation sqrt(4 * 0.25 / 3) = 0.57735; 0.5 / (0.57735 + 0.0001) = 0.86588.
    credit = GroupRelative(4).assign([1, 0, 1, 0])
    assert credit.advantages == pytest.approx([0.86588, -0.86588, 0.86588, -0.86588], abs=1e-5)


def test_each_group_is_measured_against_itself():
    credit = GroupRelative(2, scale="none").assign([0.2, 0.4, 0.9, 0.7])
    assert credit.advantages == pytest.approx([-0.1, 0.1, 0.1, -0.1])
    assert (credit.groups, credit.groups_without_variance) == (2, 0)


def test_a_group_of_equal_totals_has_no_signal_and_is_counted():
    credit = GroupRelative(3).assign([0.1, 0.1, 0.1, 0.0, 0.5, 1.0])
    assert credit.advantages[:3] == (0, 0, 0)
    assert credit.advantages[3] == pytest.approx(-credit.advantages[5]) and credit.advantages[5] > 0.99
    assert (credit.groups, credit.groups_without_variance) == (2, 1)


@pytest.mark.parametrize("totals", [[None, None], [None, 0.7]])
def test_a_group_with_fewer_than_two_totals_has_no_signal(totals):
    credit = GroupRelative(2).assign(totals)
    assert credit.advantages == (0, 0) and credit.groups_without_variance == 1


def test_a_batch_that_is_no_whole_number_of_groups_is_refused():
    with pytest.raises(ValueError, match="groups of 4"):
        GroupRelative(4).assign([0.1] * 6)


def test_a_turn_is_measured_by_what_came_from_it_on_against_the_same_turn_of_the_others():
    # From each turn on: 0.2, 0.3 and 0.1, -0.1 and 0.0. Whole dialogues: 0.2, 0.1, 0.0, deviation 0.1.
    # Turn 0: mean 0.1, so 1, 0, -1 (over 0.1001). Turn 1: 0.3 and -0.1, mean 0.1, so +-0.2 over 0.1001.
    scores = [score(0.5, -0.1, 0.3), score(0.4, 0.2, -0.1), score(0.3, 0.0)]
    credit = GroupRelative(3, "turn").of(scores, [2, 2, 1])
    assert credit.turns[0] == pytest.approx([0.1 / 0.1001, 0.2 / 0.1001])
    assert credit.turns[1] == pytest.approx([0.0, -0.2 / 0.1001])
    assert credit.turns[2] == pytest.approx([-0.1 / 0.1001])
    assert (credit.groups, credit.groups_without_variance) == (1, 0)


def test_what_comes_later_may_count_less():
    # By half: 0.2 + 0.05 = 0.25 and 0.1; 0.1 - 0.05 = 0.05 and -0.1; means 0.15 and 0.
    # The deviation of 0.25 and 0.05 is 0.141421.
    scores = [score(0.6, 0.2, 0.1), score(0.3, 0.1, -0.1)]
    found = GroupRelative(2, "turn", discount=0.5).of(scores, [2, 2]).turns
    assert found[0] == pytest.approx([0.1 / 0.141521, 0.1 / 0.141521], rel=1e-4)
    assert found[1] == pytest.approx([-0.1 / 0.141521, -0.1 / 0.141521], rel=1e-4)


def test_a_long_dialogue_counts_once_in_the_deviation():
    short, long = [score(0.5, 0.2), score(0.3, 0.0)], [score(0.5, 0.2), score(0.3, 0.0, 0.0, 0.0)]
    first = GroupRelative(2, "turn").of(short, [1, 1]).turns[0]
    assert GroupRelative(2, "turn").of(long, [1, 3]).turns[0] == first


def test_an_utterance_has_a_share_of_the_whole_by_the_client_s_own_change():
    # Ten points or more: 3 of 3; five: 1.5, which rounds to 2; a loss: none. Times the total of 0.6.
    credit = ValueBased("utterance").of([score(0.6, 0.12, 0.05, -0.08, 0.0)], [4])
    assert credit.turns[0] == pytest.approx([0.6 / 4, 2 / 3 * 0.6 / 4, 0, 0])


def test_an_utterance_s_share_may_be_a_judge_s():
    rated = Score(name="rubric-attribution", value=0.5, per_turn=(0.5, 0.0))
    total = score(0.6, 0.1, 0.1, parts=(score(0.6, 0.1, 0.1), rated))
    unrated = score(0.1, 0.1, 0.1, parts=(score(0.1, 0.1, 0.1), Score(name="rubric-attribution", value=None)))
    credit = GroupRelative(2, "utterance", "none", "rubric-attribution").of([total, unrated], [2, 2])
    assert credit.turns[0] == (0.0, 0.0) and credit.groups_without_variance == 1
    twin = score(0.2, 0.1, 0.1, parts=(score(0.2, 0.1, 0.1), rated))
    credit = GroupRelative(2, "utterance", "none", "rubric-attribution").of([total, twin], [2, 2])
    assert credit.turns[0] == pytest.approx([0.2, 0.0]) and credit.turns[1] == pytest.approx([-0.2, 0.0])


def test_ppo_s_rewards_stand_at_the_end_or_at_each_turn():
    assert ValueBased().of([score(0.6, 0.2, 0.1), score(None)], [2, 3]).turns == ((0.0, 0.6), ())
    assert ValueBased("turn").of([score(0.6, 0.2, 0.1)], [2]).turns == ((0.2, 0.1),)


def batch(turns: list[list[int]]) -> TokenBatch:
    turns_BT = torch.tensor(turns)
    zeros = torch.zeros(turns_BT.shape)
    return TokenBatch(turns_BT, zeros, None, zeros, lambda sums: sums)


def test_every_token_of_a_turn_has_the_turn_s_advantage_and_no_other_has_any():
    spread = GroupRelative(2, "turn").spread([(0.5, -0.5), (1.0,)], batch([[0, 0, -1, 1], [0, -1, -1, -1]]))
    assert spread["advantages"].tolist() == [[0.5, 0.5, 0, -0.5], [1, 0, 0, 0]]


def test_of_a_row_without_rewards_nothing_is_learnt():
    found = ValueBased("turn").spread([(0.4, 0.2), ()], batch([[0, 0, -1, 1], [0, -1, -1, -1]]))
    assert found["returns"].tolist() == [pytest.approx([0.6, 0.6, 0, 0.2]), [0, 0, 0, 0]]
    assert found["value_mask"].tolist() == [[True, True, False, True], [False] * 4]
    assert float(found["advantages"].sum()) == pytest.approx(0, abs=1e-6)


def test_what_could_not_be_attributed_is_not_trained_on_as_if_it_were_worth_nothing():
    unrated = score(0.1, 0.1, 0.1, parts=(score(0.1, 0.1, 0.1), Score(name="rubric-attribution", value=None)))
    assert ValueBased("utterance", "rubric-attribution").of([unrated], [2]).turns == ((),)
