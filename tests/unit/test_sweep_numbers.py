"""Learning curves of a sweep, compared with numbers worked by hand."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.client_spec import load_spec
from envs.clients import make_client
from envs.dialogue import DialoguePlan, run_dialogues
from envs.errors import InputError
from envs.supporters import GoodSupporter
from envs.trajectory import Stop
from tests.unit.small_run import cards_for
from trainers.statistics import Resampling
from trainers.sweep_numbers import Curve, curve_of, reach, reach_with_interval, smoothed

FEW = Resampling(resamples=400)


def curve(*means: float, groups: int = 2, rows: int = 8) -> Curve:
    """Every group of a step has its mean; ``rows`` dialogues a step."""
    counts = np.full((len(means), groups), rows / groups)
    return Curve(np.array(means)[:, None] * counts, counts, np.full(len(means), float(rows)).cumsum())


def test_a_curve_is_smoothed_by_the_last_three_steps_and_begins_with_the_third() -> None:
    out = smoothed(np.array([3.0, 6.0, 9.0, 3.0]))
    assert np.isnan(out[:2]).all()
    assert out[2:].tolist() == [6.0, 6.0]
    assert np.isnan(smoothed(np.array([1.0, 2.0]))).all()


def test_the_share_counts_the_dialogues_up_to_the_first_step_that_reaches_the_level() -> None:
    # other: smoothed 10, 20, 30 from step 3 on, level 30 after 40 dialogues; arm: 20, 30 -> step 4, 32 dialogues
    other, arm = curve(0, 10, 20, 30, 40), curve(10, 20, 30, 40)
    found = reach([arm], [other], 0.6)
    assert (found.level, found.share) == (30.0, 0.8)


def test_over_seeds_the_curves_are_averaged_before_anything_is_compared() -> None:
    other = [curve(0, 0, 0, 0), curve(20, 20, 20, 20)]  # mean 10 throughout
    arm = [curve(0, 0, 0, 30), curve(0, 0, 0, 30)]  # smoothed 0, then 10
    assert reach(arm, other, 0.6).share == 1.0
    assert reach(arm[:1], other[:1], 0.6).share == 0.75
    assert reach(arm[1:], other[1:], 0.6).share is None


def test_a_level_that_is_not_reached_has_no_share_and_an_open_interval() -> None:
    found = reach_with_interval([curve(1, 1, 1)], [curve(2, 2, 2)], 0.6, FEW)
    assert (found.level, found.share, found.ci95) == (2.0, None, (None, None))
    assert (found.reached, found.in_time) == (0.0, 0.0)


def test_a_run_of_two_steps_has_no_level() -> None:
    found = reach_with_interval([curve(1, 1)], [curve(2, 2)], 0.6, FEW)
    assert (found.level, found.share, found.ci95, found.in_time) == (None, None, None, None)


def test_groups_that_are_all_alike_leave_an_interval_of_no_width() -> None:
    found = reach_with_interval([curve(9, 9, 9)], [curve(9, 9, 9, 9, 9)], 0.6, FEW)
    assert (found.share, found.ci95, found.reached, found.in_time) == (0.6, (0.6, 0.6), 1.0, 1.0)
    late = reach_with_interval([curve(9, 9, 9)], [curve(9, 9, 9, 9)], 0.6, FEW)
    assert (late.share, late.reached, late.in_time) == (0.75, 1.0, 0.0)


def test_seeds_that_differ_widen_the_interval_and_are_drawn_for_both_arms_alike() -> None:
    # Paired, the arm is at the other's level at its third step whichever seeds are drawn; unpaired it would not be.
    low, high = curve(10, 10, 10, 10), curve(50, 50, 50, 50)
    assert reach_with_interval([low, high], [low, high], 0.75, FEW).ci95 == (0.75, 0.75)
    slow = [curve(10, 10, 10, 10), curve(0, 0, 0, 150)]
    assert reach_with_interval(slow, [low, high], 0.75, FEW).ci95 == (0.75, 1.0)


def test_groups_are_drawn_within_their_step() -> None:
    counts = np.ones((3, 2))
    two_kinds = Curve(np.array([[0.0, 100.0]] * 3), counts, np.array([2.0, 4.0, 6.0]))
    found = reach_with_interval([curve(50, 50, 50, rows=2)], [two_kinds], 1.0, FEW)
    # The level is a mean of six draws of 0 or 100: at most 50 with probability (1 + 20/64) / 2 = 0.656.
    assert found.reached == pytest.approx(0.656, abs=0.08)


@given(st.lists(st.floats(0, 100), min_size=3, max_size=12))
def test_an_arm_reaches_its_own_level_with_all_its_dialogues_at_the_latest(means: list[float]) -> None:
    share = reach([curve(*means)], [curve(*means)], 0.6).share
    assert share is not None
    assert 3 / len(means) - 1e-6 <= share <= 1


def test_the_same_seed_gives_the_same_interval() -> None:
    sides = [curve(0, 10, 20, 30)], [curve(5, 5, 25, 5)]
    assert reach_with_interval(*sides, 0.6, FEW) == reach_with_interval(*sides, 0.6, FEW)


def test_a_curve_leaves_failed_dialogues_out_of_the_mean_and_counts_them_as_used() -> None:
    card, spec = cards_for(["bus-depot-letter"])[0], load_spec("appraisal-v1")
    plans = [
        DialoguePlan(f"{step:06d}-{group:03d}-000-x", card, spec, 7, make_client(card, spec, 7), GoodSupporter("en", 7))
        for step, group in ((0, 0), (0, 1), (1, 0))
    ]
    talks = asyncio.run(run_dialogues(plans, concurrency=2))
    talks[1] = talks[1].model_copy(update={"stop": Stop.ERROR, "error": "gone"})
    found = curve_of(talks)
    assert found.dialogues.tolist() == [2, 3]
    assert found.counts.tolist() == [[1, 0], [1, 0]]
    assert found.means.tolist() == [talks[0].final_emotion, talks[2].final_emotion]


def test_a_held_out_dialogue_has_no_place_on_a_curve() -> None:
    card, spec = cards_for(["bus-depot-letter"])[0], load_spec("appraisal-v1")
    plan = DialoguePlan("evaluation/x/0", card, spec, 7, make_client(card, spec, 7), GoodSupporter("en", 7))
    with pytest.raises(InputError, match="is no training dialogue"):
        curve_of(asyncio.run(run_dialogues([plan], concurrency=1)))
