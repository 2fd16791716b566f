"""Combination: each reward is measured against its group before they are added, over dialogues and over turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from envs.trajectory import Score
from rewards.combine import decoupled_advantages, decoupled_turn_advantages, group_relative, is_flat
from trainers.credit import GroupDecoupled, GroupRelative

NAMES = ("emotion", "judge", "extra")


def row(*values: float | None, shares: Sequence[Sequence[float | None] | None] = ()) -> list[Score]:
    given = [*shares, *[None] * (len(values) - len(shares))]
    return [
        Score(name=name, value=value, per_turn=tuple(part) if part is not None else None)
        for name, value, part in zip(NAMES[: len(values)], values, given, strict=True)
    ]


def turned(*shares: float | None, start: float = 0.0) -> list[Score]:
    """A row of one reward whose value is ``start`` and its shares together."""
    known = [share for share in shares if share is not None]
    return row(round(start + sum(known), 9), shares=[shares])


def test_two_rewards_are_normalised_on_their_own_before_they_are_added():
    # Emotion 0, 1: mean 0.5, deviation 0.70711, so -+0.70701. Judge 0.5, 0.4: +-0.05 over 0.070711 + 0.0001, so
    # +-0.70611. Weights 1 and 3: sums 1.41133 and -1.41133; deviation over the batch sqrt(2 x 1.99185 / 1) = 1.99592.
    found = decoupled_advantages([row(0.0, 0.5), row(1.0, 0.4)], [1, 3], 2)
    assert found == pytest.approx([1.41133 / (1.99592 + 1e-4), -1.41133 / (1.99592 + 1e-4)], abs=1e-4)


def test_unlike_mixes_that_meet_in_one_total_keep_apart():
    # Totals 0.9, 0.9, 0.3, 0.3 and so two levels; the rewards tell all but the last two apart.
    rows = [row(0.9, 0.0), row(0.7, 0.2), row(0.1, 0.2), row(0.1, 0.2)]
    joined = GroupRelative(4).assign([sum(score.value or 0 for score in scores) for scores in rows]).advantages
    assert joined[0] == pytest.approx(joined[1])
    found = decoupled_advantages(rows, [1, 1], 4)
    assert found[0] < found[1] - 0.5 and found[2] == pytest.approx(found[3])


def test_a_row_that_lacks_a_weighted_score_gets_nothing_and_is_left_out_of_every_reward():
    whole = decoupled_advantages([row(0.2, 0.1), row(0.6, 0.5)], [1, 1], 2)
    found = decoupled_advantages([row(0.2, 0.1), row(0.9, None), row(0.6, 0.5)], [1, 1], 3)
    assert found[1] == 0 and [found[0], found[2]] == pytest.approx(whole)


def test_a_score_without_weight_may_be_missing_and_moves_nothing():
    found = decoupled_advantages([row(0.2, None), row(0.6, 0.9)], [1, 0], 2)
    assert found == pytest.approx(decoupled_advantages([row(0.2), row(0.6)], [1], 2))


def test_a_dead_reward_adds_nothing_and_a_group_where_all_are_dead_gets_nothing():
    rows = [row(0.2, 0.5), row(0.6, 0.5), row(0.3, 0.4), row(0.3, 0.4)]
    totals = [Score(name="total", value=0.5, parts=tuple(scores)) for scores in rows]
    credit = GroupDecoupled(2, weights=(1, 1)).of(totals, [1] * 4)
    assert credit.advantages[0] == pytest.approx(-credit.advantages[1]) and credit.advantages[1] > 0.5
    assert credit.advantages[2:] == (0, 0)
    assert (credit.groups, credit.groups_without_variance) == (2, 1)


def test_differences_of_rounding_are_none():
    assert is_flat([0.1 + 0.2, 0.3, None]) and not is_flat([0.3, 0.3001])
    assert group_relative([0.1 + 0.2, 0.3, None]) == [0, 0, 0]


def test_rows_that_don_t_fit_are_refused():
    with pytest.raises(ValueError, match="groups of 2"):
        decoupled_advantages([row(0.2)] * 3, [1], 2)
    with pytest.raises(ValueError, match="same scores in the same order"):
        decoupled_advantages([row(0.2, 0.3), row(0.2, 0.3)[::-1]], [1, 1], 2)
    with pytest.raises(ValueError, match="zip"):
        decoupled_advantages([row(0.2, 0.3), row(0.2, 0.3)], [1], 2)


VALUE = st.none() | st.integers(0, 100).map(lambda points: points / 100)
ROWS = st.lists(st.tuples(VALUE, VALUE), min_size=4, max_size=12).filter(lambda rows: len(rows) % 4 == 0)


@settings(deadline=None)
@given(ROWS)
def test_advantages_are_finite_and_sum_to_nothing_within_each_group(pairs: list[Any]):
    found = decoupled_advantages([row(*pair) for pair in pairs], [1, 2], 4)
    assert all(math.isfinite(value) for value in found)
    for start in range(0, len(found), 4):
        assert sum(found[start : start + 4]) == pytest.approx(0, abs=1e-9)
    assert all(value == 0 for value, pair in zip(found, pairs, strict=True) if None in pair)


@settings(deadline=None)
@given(ROWS, st.floats(0.2, 1), st.floats(0.5, 4))
def test_neither_the_scale_of_a_reward_nor_that_of_all_weights_matters(pairs: list[Any], shrink: float, factor: float):
    spreads = [{pair[place] for pair in pairs if None not in pair} for place in (0, 1)]
    assume(all(len(spread) > 1 for spread in spreads))
    found = decoupled_advantages([row(*pair) for pair in pairs], [1, 2], 4)
    # Values a hundredth apart, shrunk to a fifth, deviate by 0.0014: the floor of 0.0001 still takes up to 7 % of it.
    smaller = [(a, None if b is None else b * shrink) for a, b in pairs]
    assert decoupled_advantages([row(*pair) for pair in smaller], [1, 2], 4) == pytest.approx(found, abs=0.15)
    weighed = decoupled_advantages([row(*pair) for pair in pairs], [factor, 2 * factor], 4)
    assert weighed == pytest.approx(found, abs=1e-3)


@settings(deadline=None)
@given(st.permutations(range(4)))
def test_the_order_within_a_group_decides_nothing(order: list[int]):
    rows = [row(0.1, 0.9), row(0.4, 0.9), row(0.5, 0.2), row(None, 0.3)]
    found = decoupled_advantages(rows, [1, 1], 4)
    assert decoupled_advantages([rows[i] for i in order], [1, 1], 4) == pytest.approx([found[i] for i in order])


def test_what_a_turn_earned_from_then_on_is_measured_against_the_same_turn_of_the_others():
    # Returns: first row 0.3, 0.2; second 0.1, 0.2; third 0.2. Turn 0: mean 0.2, so 0.1, -0.1, 0. Turn 1: 0, 0.
    # The dialogues earned 0.3, 0.1, 0.2: deviation 0.1. Over the batch: five turns, so 4 degrees.
    rows = [turned(0.1, 0.2, start=0.3), turned(-0.1, 0.2, start=0.3), turned(0.2, start=0.3)]
    found = decoupled_turn_advantages(rows, [1], 3, [2, 2, 1])
    part = 0.1 / (0.1 + 1e-4)
    scale = math.sqrt(2 * part**2 / 4) + 1e-4
    assert found[0] == pytest.approx([part / scale, 0], abs=1e-9)
    assert found[1] == pytest.approx([-part / scale, 0], abs=1e-9)
    assert found[2] == pytest.approx([0], abs=1e-9)


def test_equal_ends_earn_equal_credit_whatever_the_number_of_turns():
    rows = [turned(0.3, start=0.2), turned(0.1, 0.1, 0.1, start=0.2)]
    assert decoupled_turn_advantages(rows, [1], 2, [1, 3]) == [[0], [0, 0, 0]]


def test_with_one_turn_each_the_turns_credit_is_the_dialogue_s():
    values = [0.1, 0.2, 0.4, 0.7]
    turn_by_turn = decoupled_turn_advantages([turned(value) for value in values], [1], 4, [1] * 4)
    whole = decoupled_advantages([row(value) for value in values], [1], 4)
    assert [part for (part,) in turn_by_turn] == pytest.approx(whole)


def test_a_reward_without_shares_counts_whole_on_every_turn():
    rows = [row(0.2), row(0.6)]
    found = decoupled_turn_advantages(rows, [1], 2, [2, 1])
    assert found[0][0] == found[0][1] < 0 < found[1][0]
    assert found[1][0] == pytest.approx(-found[0][0])


@pytest.mark.parametrize("broken", [(None, 0.3), None])
def test_a_group_in_which_one_dialogue_lacks_shares_is_compared_by_whole_dialogues(broken):
    rows = [turned(0.1, 0.1, start=0.2), row(0.9, shares=[broken])]
    found = decoupled_turn_advantages(rows, [1], 2, [2, 2])
    assert found[0][0] == found[0][1] < 0 and found[1] == pytest.approx([-found[0][0]] * 2)


def test_a_failed_dialogue_has_no_credit_on_any_turn_and_none_of_its_shares_count():
    rows = [turned(0.1, start=0.2), turned(0.3, start=0.2), row(None, shares=[(0.9, 0.9)])]
    found = decoupled_turn_advantages(rows, [1], 3, [1, 1, 2])
    assert found[2] == [0, 0]
    assert [*found[0], *found[1]] == pytest.approx([-found[1][0], found[1][0]]) and found[1][0] > 0.5


def test_shares_for_another_number_of_turns_are_refused():
    with pytest.raises(ValueError, match="emotion: 2 shares for a dialogue of 3 turns"):
        decoupled_turn_advantages([turned(0.1, 0.2), turned(0.1, 0.2)], [1], 2, [3, 2])


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-10, 10), min_size=1, max_size=5), min_size=4, max_size=4))
def test_at_each_turn_the_credit_of_those_who_reached_it_sums_to_nothing(paths: list[list[int]]):
    rows = [turned(*(step / 100 for step in path), start=0.5) for path in paths]
    found = decoupled_turn_advantages(rows, [1], 4, [len(path) for path in paths])
    assert [len(part) for part in found] == [len(path) for path in paths]
    for turn in range(max(map(len, paths))):
        assert sum(part[turn] for part in found if turn < len(part)) == pytest.approx(0, abs=1e-9)
