"""Bootstrap intervals over dialogues that are clustered by card."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.statistics import Estimate, Resampling, differences, estimate_by_group, estimate_mean, estimate_ratio

FEW = Resampling(resamples=400)
emotions = st.floats(min_value=0, max_value=100)


def test_a_mean_is_taken_over_the_means_of_the_cards():
    estimate = estimate_mean([10, 20, 60], ["a", "a", "b"], FEW)
    assert estimate.mean == pytest.approx((15 + 60) / 2)
    assert (estimate.n, estimate.cards, estimate.missing) == (3, 2, 0)


def test_two_cards_give_the_interval_that_can_be_worked_out_by_hand():
    # A resample of two cards is (0, 0), (0, 1), (1, 0) or (1, 1), a quarter each: means 0, 1/2, 1/2 and 1.
    assert estimate_mean([0, 1], ["a", "b"], Resampling()).ci95 == (0.0, 1.0)


def test_four_cards_give_the_quantiles_of_a_binomial():
    # The mean of a resample is k/4 with k from Binomial(4, 1/2): P(0) = P(4) = 1/16, more than the 2.5 % on each side;
    # with one card in four, P(0) = 0.316 and P(k <= 3) = 0.996, so the ends are 0 and 3/4.
    assert estimate_mean([0, 0, 1, 1], list("abcd"), Resampling()).ci95 == (0.0, 1.0)
    assert estimate_mean([0, 0, 0, 1], list("abcd"), Resampling()).ci95 == (0.0, 0.75)


def test_values_that_were_not_measured_are_left_out_and_counted():
    estimate = estimate_mean([None, 40, 60, None], ["a", "a", "b", "c"], FEW)
    assert estimate.mean == 50
    assert (estimate.n, estimate.cards, estimate.missing) == (2, 2, 2)


def test_nothing_measured_has_no_mean_and_no_interval():
    assert estimate_mean([None], ["a"], FEW) == Estimate(mean=None, ci95=None, n=0, cards=0, missing=1)
    assert estimate_mean([], [], FEW).mean is None


def test_one_card_has_a_mean_and_no_interval_however_many_seeds():
    estimate = estimate_mean([10, 20, 30], ["a", "a", "a"], FEW)
    assert (estimate.mean, estimate.ci95, estimate.n) == (20, None, 3)


def test_repeating_a_cards_dialogues_does_not_narrow_the_interval():
    values, cards = [10.0, 40.0, 90.0], ["a", "b", "c"]
    assert estimate_mean(values * 5, cards * 5, FEW).ci95 == estimate_mean(values, cards, FEW).ci95


def test_a_ratio_weighs_each_dialogue_by_its_replies():
    estimate = estimate_ratio([1, 0, 3], [2, 5, 3], ["a", "a", "b"], FEW)
    assert estimate.mean == pytest.approx(4 / 10)
    assert estimate.n == 10
    assert estimate_ratio([0, 1], [0, 4], ["a", "b"], FEW).missing == 1


def test_a_transform_is_applied_to_the_ratio_and_to_both_ends():
    plain = estimate_ratio([1, 3], [2, 2], ["a", "b"], FEW)
    raised = estimate_ratio([1, 3], [2, 2], ["a", "b"], FEW, transform=math.exp)
    assert plain.ci95 is not None
    assert raised.mean == pytest.approx(math.e, abs=1e-6)
    assert raised.ci95 == pytest.approx([math.exp(end) for end in plain.ci95], abs=1e-6)


def test_groups_are_estimated_by_themselves():
    groups = estimate_by_group([10, 20, None], ["a", "b", "c"], ["x", "x", "y"], FEW)
    assert groups["x"].mean == 15
    assert groups["y"].mean is None and groups["y"].missing == 1


def test_a_difference_is_missing_where_either_side_is():
    assert differences([1, None, 3, 4], [2, 2, None, 1]) == [1, None, None, -3]


def test_the_json_shape_holds_mean_interval_and_count():
    data = estimate_mean([0, 1], ["a", "b"], FEW).model_dump(mode="json")
    assert data == {"mean": 0.5, "ci95": [0.0, 1.0], "n": 2, "cards": 2, "missing": 0}


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values, cards = list(np.linspace(0, 100, 17) ** 1.1), [str(i) for i in range(17)]
    again = [estimate_mean(values, cards, Resampling(resamples=200, seed=seed)).ci95 for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_a_long_row_of_values_gives_the_interval_of_the_normal_approximation():
    values = np.random.default_rng(3).normal(50, 30, size=400)
    low, high = estimate_mean(list(values), [str(i) for i in range(400)], Resampling(resamples=4000)).ci95 or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), emotions), min_size=1, max_size=30), st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_dialogues_changes_nothing(rows, random):
    shuffled = random.sample(rows, len(rows))
    first, second = (estimate_mean([v for _, v in r], [c for c, _ in r], FEW) for r in (rows, shuffled))
    assert first.mean == pytest.approx(second.mean, abs=2e-6)
    assert first.ci95 == (None if second.ci95 is None else pytest.approx(second.ci95, abs=2e-6))


@given(st.lists(emotions, min_size=2, max_size=20))
@settings(max_examples=40, deadline=None)
def test_an_interval_lies_within_the_range_of_the_values(values):
    low, high = estimate_mean(values, [str(i) for i in range(len(values))], FEW).ci95 or (0, 0)
    assert min(values) - 1e-5 <= low <= high <= max(values) + 1e-5


def test_clustered_intervals_cover_the_truth_where_naive_ones_do_not():
    truth, covered, naively = 50.0, 0, 0
    draw = np.random.default_rng(0)
    for _ in range(200):
        people = draw.normal(truth, 20, size=24)
        values = [float(person + noise) for person in people for noise in draw.normal(0, 3, size=8)]
        cards = [str(card) for card in range(24) for _ in range(8)]
        low, high = estimate_mean(values, cards, FEW).ci95 or (0, 0)
        covered += low <= truth <= high
        low, high = estimate_mean(values, [str(i) for i in range(len(values))], FEW).ci95 or (0, 0)
        naively += low <= truth <= high
    assert covered / 200 > 0.88
    assert naively / 200 < 0.75
