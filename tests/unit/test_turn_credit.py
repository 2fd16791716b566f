"""Advantages turn by turn within a group, against hand-worked numbers and a reference in plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.combine import group_relative
from tests import reference

SHARES = st.one_of(st.sampled_from([0.0, 0.1, -0.1]), st.floats(-1, 1).map(lambda x: round(x, 4)))
ROW = st.lists(SHARES, min_size=1, max_size=8)
TOTALS = st.lists(st.one_of(st.none(), SHARES), min_size=1, max_size=8)

Terminal = Callable[[Sequence[float | None]], list[float]]
PerTurn = Callable[[Sequence[Sequence[float]], Sequence[bool]], list[list[float]]]
PerUtterance = Callable[[Sequence[float | None], Sequence[Sequence[int]]], list[list[float]]]


def flat(rows: Sequence[Sequence[float]]) -> list[float]:
    return [number for row in rows for number in row]


@pytest.mark.parametrize("terminal", [reference.terminal_credit, group_relative])
def test_a_whole_dialogue_is_measured_against_its_group(terminal: Terminal):
    # 0.3, 0.4 and 0.3: mean 1/3, deviation sqrt((1 + 4 + 1) / 900 / 2) = 0.057735; -0.033333 / 0.057835 = -0.57635.
    found = terminal([0.3, None, 0.4, 0.3])
    assert found == pytest.approx([-0.57635, 0, 1.15271, -0.57635], abs=1e-5)


@pytest.mark.parametrize("per_turn", [reference.turn_credit])
def test_a_turn_is_measured_against_the_group_s_same_turn_over_the_deviation_of_whole_dialogues(per_turn: PerTurn):
    # From turn 0 on: 0.3, 0.4, 0.3, as above. From turn 1 on two rows are left: 0.1 and 0.3 about 0.2, over the same
    # deviation: 0.1 / 0.057835 = 1.72906. Turn 2 has one row, so 0. The row without a total moves nothing.
    rows = [(0.2, 0.1), (9.0, 9.0), (0.4,), (0.0, 0.1, 0.2)]
    found = per_turn(rows, [True, False, True, True])
    assert found[0] == pytest.approx([-0.57635, -1.72906], abs=1e-5)
    assert found[1] == [0, 0]
    assert found[2] == pytest.approx([1.15271], abs=1e-5)
    assert found[3] == pytest.approx([-0.57635, 1.72906, 0], abs=1e-5)


@pytest.mark.parametrize("per_turn", [reference.turn_credit])
def test_a_group_whose_dialogues_earned_the_same_has_no_signal(per_turn: PerTurn):
    # 0.1 + 0.2 and 0.3 differ by rounding only.
    assert per_turn([(0.1, 0.2), (0.3, 0.0)], [True, True]) == [[0, 0], [0, 0]]
    assert per_turn([(0.1, 0.2), (0.9, 0.0)], [True, False]) == [[0, 0], [0, 0]]


@pytest.mark.parametrize("per_utterance", [reference.utterance_credit])
def test_an_utterance_gets_its_mark_s_share_of_the_total(per_utterance: PerUtterance):
    # Total 0.6, marks 3 and 1: 0.6 and 0.2, mean 0.4. Total 0.9, marks 1 and 1: 0.3 and 0.3, mean 0.3. Deviation of
    # 0.4 and 0.3: 0.070711. Turn 0: +-0.15 / 0.070811 = 2.11832; turn 1: -+0.05 / 0.070811 = 0.70611.
    found = per_utterance([0.6, None, 0.9], [(3, 1), (3, 3), (1, 1)])
    assert found[0] == pytest.approx([2.11832, -0.70611], abs=1e-5)
    assert found[1] == [0, 0]
    assert found[2] == pytest.approx([-2.11832, 0.70611], abs=1e-5)


@given(totals=TOTALS)
@settings(deadline=None)
def test_advantages_of_whole_dialogues_are_the_reference_s(totals: list[float | None]):
    assert group_relative(totals) == pytest.approx(reference.terminal_credit(totals), rel=1e-6, abs=1e-9)
