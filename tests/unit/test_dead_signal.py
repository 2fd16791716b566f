"""Dead signals: counted per reward, over a step and a window; a dead reward may be compared pairwise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.trajectory import Score
from rewards.dead_signal import (
    Duel,
    SignalCount,
    SwitchRule,
    count_signals,
    round_robin,
    signal_metrics,
    switched,
    win_shares,
)


def rows(**columns: Sequence[float | None]) -> list[list[Score]]:
    return [
        [Score(name=name, value=value) for name, value in zip(columns, values, strict=True)]
        for values in zip(*columns.values(), strict=True)
    ]


def count(flat: int, groups: int = 4) -> dict[str, SignalCount]:
    return {"safety": SignalCount(rows=16, unmeasured=0, groups=groups, flat=flat)}


def test_groups_without_a_difference_are_counted_for_each_reward():
    found = count_signals(
        rows(emotion=[0.1, 0.2, 0.3, 0.3], safety=[0.8, 0.8, 0.8, 0.8], empathy=[0.5, None, None, None]), 2
    )
    assert found["emotion"] == SignalCount(rows=4, unmeasured=0, groups=2, flat=1)
    assert found["safety"] == SignalCount(rows=4, unmeasured=0, groups=2, flat=2)
    assert found["empathy"] == SignalCount(rows=4, unmeasured=3, groups=0, flat=0)
    assert (found["emotion"].dead_rate, found["safety"].dead_rate) == (0.5, 1.0)
    assert (found["empathy"].dead_rate, found["empathy"].none_rate) == (None, 0.75)  # nothing to call dead


def test_a_missing_value_neither_kills_nor_saves_a_group():
    assert count_signals(rows(safety=[0.8, None, 0.8]), 3)["safety"].flat == 1
    assert count_signals(rows(safety=[0.8, None, 0.7]), 3)["safety"].flat == 0


def test_rows_with_other_rewards_are_refused():
    mixed = [[Score(name="a", value=1)], [Score(name="b", value=1)]]
    with pytest.raises(ValueError, match="same scores"):
        count_signals(mixed, 2)


def test_the_log_says_the_rate_of_the_step_and_of_the_window():
    rule = SwitchRule(window=2)
    told = signal_metrics([count(0), count(1), count(4)], rule)["safety"]
    assert told == {
        "rows": 16,
        "unmeasured": 0,
        "groups": 4,
        "flat": 4,
        "none_rate": 0,
        "dead_rate": 1.0,
        "dead_rate_window": 5 / 8,
    }
    assert signal_metrics([], rule) == {}


RULE = SwitchRule(window=3, max_dead_rate=0.5, min_groups=10, pairwise=("safety",))


def test_a_reward_that_is_dead_over_the_window_is_switched_where_the_config_allows():
    history = [count(3), count(2), count(2)]  # 7 of 12
    assert switched(history, RULE) == {"safety"}
    assert switched(history, RULE.model_copy(update={"pairwise": ("empathy",)})) == frozenset()


@pytest.mark.parametrize(
    "history",
    [
        [count(4), count(4)],  # the window isn't full
        [count(2), count(2), count(2)],  # at the bound, not over it
        [count(3, groups=3)] * 3,  # 9 groups are too few to say
        [],
    ],
)
def test_a_reward_is_left_alone_without_enough_evidence(history):
    assert switched(history, RULE) == frozenset()


def test_a_switched_reward_stays_so_though_pairs_tell_dialogues_apart():
    assert switched([count(4)] * 3 + [count(0)] * 20, RULE) == {"safety"}


def test_the_share_of_others_beaten_counts_ties_as_half_and_both_orders_alike():
    # 0 beats 1 in both orders, ties with 2; 1 against 2: each wins when it is shown first.
    duels = [(0, 1, 1.0), (1, 0, 0.0), (0, 2, 0.5), (2, 0, 0.5), (1, 2, 1.0), (2, 1, 1.0)]
    found = win_shares(3, [Duel(first=a, second=b, first_wins=w) for a, b, w in duels])
    assert found == [0.75, 0.25, 0.5]


def test_a_judge_who_always_prefers_the_first_says_nothing():
    assert win_shares(4, [Duel(first=a, second=b, first_wins=1) for a, b in round_robin(4)]) == [0.5] * 4


def test_who_lacks_a_pair_in_either_order_has_no_share():
    duels = [Duel(first=a, second=b, first_wins=None if (a, b) == (2, 1) else 0.5) for a, b in round_robin(3)]
    assert win_shares(3, duels) == [0.5, None, None]
    assert win_shares(1, []) == [None] and win_shares(0, []) == []


def test_a_pair_that_is_none_is_refused():
    for first, second in ((0, 0), (0, 2)):
        with pytest.raises(ValueError, match="no pair of a group of 2"):
            win_shares(2, [Duel(first=first, second=second, first_wins=1)])


def test_everyone_meets_everyone_in_both_orders():
    assert sorted(round_robin(3)) == [pair for pair in product(range(3), repeat=2) if pair[0] != pair[1]]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=7))
def test_a_judge_who_orders_the_group_is_given_back_its_order(worth: list[int]):
    duels = [
        Duel(first=a, second=b, first_wins=(worth[a] > worth[b]) + (worth[a] == worth[b]) / 2)
        for a, b in round_robin(len(worth))
    ]
    shares = win_shares(len(worth), duels)
    assert sum(share or 0 for share in shares) == pytest.approx(len(worth) / 2)
    for a, b in round_robin(len(worth)):
        assert (worth[a] > worth[b]) == ((shares[a] or 0) > (shares[b] or 0) + 1e-12)
