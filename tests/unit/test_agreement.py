"""Agreement of two raters: textbook numbers, invariances, intervals, and pairs counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.agreement import (
    CHUNK,
    count_pairs,
    draws,
    icc,
    interval,
    item_level,
    moments,
    responder_level,
    two_rater_icc,
)

# Shrout & Fleiss 1979 (doi:10.1037/0033-2909.86.2.420), table 2: six things rated by four judges.
TEXTBOOK = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)

two_raters = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=3, max_size=40).map(
    lambda pairs: np.array(pairs, dtype=float)
)


def by_moments(ratings: np.ndarray) -> tuple[float, float]:
    features = moments(ratings[:, :1], ratings[:, 1:])
    found = two_rater_icc(np.array([float(len(ratings))]), features.sum(axis=0)[None])
    return float(found.c1[0, 0]), float(found.a1[0, 0])


def test_the_textbook_example_comes_out_as_printed():
    c1, a1 = icc(TEXTBOOK)
    assert (round(c1, 2), round(a1, 2)) == (0.71, 0.29)


def test_two_raters_worked_by_hand():
    # People 1, 2, 3 and a judge 2, 3, 4. Rows 1.5, 2.5, 3.5: MSR = 2 * 2 / 2 = 2. Columns 2 and 3: MSC = 3 * .5 = 1.5.
    # Error 0. ICC(C,1) = 2 / 2 = 1; ICC(A,1) = 2 / (2 + 2 / 3 * 1.5) = 2 / 3.
    assert icc(np.array([[1, 2], [2, 3], [3, 4]], dtype=float)) == pytest.approx((1, 2 / 3))


def test_a_judge_that_turns_the_order_round_has_minus_one():
    assert icc(np.array([[1, 3], [2, 2], [3, 1]], dtype=float))[0] == pytest.approx(-1)


def test_ratings_that_never_vary_have_no_coefficient():
    assert np.isnan(icc(np.full((4, 2), 3.0))).all()


def test_a_judge_that_always_says_the_same_has_none_of_the_order():
    assert by_moments(np.array([[1, 5], [3, 5], [5, 5]], dtype=float))[0] == pytest.approx(0)


@settings(deadline=None)
@given(two_raters)
def test_the_way_by_moments_gives_what_the_mean_squares_give(ratings: np.ndarray):
    assert by_moments(ratings) == pytest.approx(icc(ratings), abs=1e-9, nan_ok=True)


@settings(deadline=None)
@given(two_raters, st.integers(1, 4))
def test_a_judge_that_is_always_kinder_by_a_constant_stays_consistent(ratings: np.ndarray, kinder: int):
    before, after = icc(ratings), icc(ratings + np.array([0, kinder]))
    assert after[0] == pytest.approx(before[0], abs=1e-9, nan_ok=True)


def test_a_judge_that_is_kinder_by_a_constant_agrees_less():
    agreeing = np.array([[1, 1], [3, 3], [5, 5], [2, 3]], dtype=float)
    assert icc(agreeing + np.array([0, 2]))[1] < icc(agreeing)[1] - 0.2


@settings(deadline=None)
@given(two_raters)
def test_it_matters_not_which_of_the_two_is_called_the_judge(ratings: np.ndarray):
    assert icc(ratings[:, ::-1]) == pytest.approx(icc(ratings), abs=1e-9, nan_ok=True)


def test_each_resample_draws_as_many_things_as_there_are():
    drawn = list(draws(7, CHUNK + 3, seed=1))
    assert [len(part) for part in drawn] == [CHUNK, 3]
    assert {float(total) for part in drawn for total in part.sum(axis=1)} == {7.0}


def rated(seed: int, conversations: int = 60, responders: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """People's and a judge's ratings, (N, 2), on an axis where they share an order and on one where they don't."""
    generator = np.random.default_rng(seed)
    who = np.tile(np.arange(responders), conversations)
    shared = generator.normal(size=len(who)) + who / 2
    human = np.stack([shared, generator.normal(size=len(who))], axis=1)
    judge = np.stack([shared + generator.normal(size=len(who)) / 2, generator.normal(size=len(who))], axis=1)
    return human, judge, who


def test_both_levels_are_the_coefficients_of_their_ratings():
    human, judge, who = rated(0)
    single, means = item_level(human, judge, who, 100, 0), responder_level(human, judge, who, 100, 0)
    for axis in (0, 1):
        ratings = np.stack([human[:, axis], judge[:, axis]], axis=1)
        assert (single.value.c1[0, axis], single.value.a1[0, axis]) == pytest.approx(icc(ratings))
        by_responder = np.array([ratings[who == one].mean(axis=0) for one in range(6)])
        assert (means.value.c1[0, axis], means.value.a1[0, axis]) == pytest.approx(icc(by_responder))


def test_resamples_are_the_coefficients_of_the_things_drawn():
    human, judge, who = rated(1, conversations=5, responders=4)
    found = item_level(human, judge, who, 100, seed=3)
    means = responder_level(human, judge, who, 100, seed=3)
    rows, people = next(draws(20, 100, 3))[0].astype(int), next(draws(4, 100, 3))[0].astype(int)
    ratings = np.stack([human[:, 0], judge[:, 0]], axis=1)
    assert found.over_items.c1[0, 0] == pytest.approx(icc(np.repeat(ratings, rows, axis=0))[0])
    of_people = np.concatenate([np.tile(ratings[who == one], (times, 1)) for one, times in enumerate(people)])
    assert found.over_responders is not None and means.over_responders is not None
    assert found.over_responders.a1[0, 0] == pytest.approx(icc(of_people)[1])
    by_responder = np.array([ratings[who == one].mean(axis=0) for one in range(4)])
    assert means.over_responders.c1[0, 0] == pytest.approx(icc(np.repeat(by_responder, people, axis=0))[0])
    repeated, whose = np.repeat(ratings, rows, axis=0), np.repeat(who, rows)
    redrawn = np.array([repeated[whose == one].mean(axis=0) for one in range(4)])
    assert means.over_items.c1[0, 0] == pytest.approx(icc(redrawn)[0])


def test_a_resample_that_holds_none_of_a_responders_rows_has_no_coefficient_and_spoils_no_other():
    human, judge, who = rated(1, conversations=1, responders=4)
    found = responder_level(human, judge, who, 100, seed=0).over_items.c1[:, 0]
    whole = (next(draws(4, 100, 0)) > 0).all(axis=1)
    assert 0 < whole.sum() < CHUNK
    assert np.isfinite(found[:CHUNK][whole]).all() and np.isnan(found[:CHUNK][~whole]).all()


def test_the_interval_of_a_shared_order_lies_above_that_of_none():
    human, judge, who = rated(2)
    found = item_level(human, judge, who, 400, 0).over_items
    shared, none = interval(found.c1[:, 0]), interval(found.c1[:, 1])
    assert shared is not None and none is not None
    assert shared[0] > 0.7 and -0.3 < none[0] < none[1] < 0.3


def test_the_same_seed_gives_the_same_interval_and_another_another():
    human, judge, who = rated(3)
    one, again, other = (item_level(human, judge, who, 200, seed).over_items.c1 for seed in (5, 5, 6))
    assert (one == again).all() and (one != other).any()


def test_an_interval_leaves_out_a_few_resamples_without_coefficient_and_is_none_with_many():
    values = np.arange(100, dtype=float)
    few, many = values.copy(), values.copy()
    few[:5], many[:6] = np.nan, np.nan
    assert interval(few) == pytest.approx((7.35, 96.65))  # 5 + .025 * 94, 5 + .975 * 94
    assert interval(many) is None


def test_pairs_are_counted_within_a_conversation_and_from_the_margin_on():
    conversations = np.array([0, 1, 0, 1, 0])
    human = np.array([[1.0], [5], [3], [1], [2]])
    judge = np.array([[2.0], [5], [2], [5], [3]])
    # Conversation 0: people 1, 3, 2, the judge 2, 2, 3: (1,3) tied, (1,2) right, (3,2) inverted. Conversation 1: tied.
    found = count_pairs(human, judge, conversations, margin=1)
    assert [int(count[0]) for count in (found.ordered, found.ties, found.inversions)] == [4, 2, 1]
    wider = count_pairs(human, judge, conversations, margin=2)
    assert [int(count[0]) for count in (wider.ordered, wider.ties, wider.inversions)] == [2, 2, 0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=25))
def test_pairs_are_those_that_a_plain_count_finds(rows: list[tuple[int, int, int]]):
    conversations = np.unique([row[0] for row in rows], return_inverse=True)[1]
    human, judge = (np.array([[float(row[at])] for row in rows]) for at in (1, 2))
    plain = [0, 0, 0]
    for first, one in enumerate(rows):
        for two in rows[first + 1 :]:
            if one[0] == two[0] and one[1] != two[1]:
                product = (one[1] - two[1]) * (one[2] - two[2])
                plain = [plain[0] + 1, plain[1] + (product == 0), plain[2] + (product < 0)]
    found = count_pairs(human, judge, conversations, 1)
    assert [int(count[0]) for count in (found.ordered, found.ties, found.inversions)] == plain
