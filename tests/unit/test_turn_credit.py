"""Advantages turn by turn within a group, against hand-worked numbers and a reference in plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.trajectory import Score
from rewards.combine import group_relative
from tests import reference
from tests.reference import Grid, grids, masks
from trainers.credit import GroupRelative, TokenBatch, ValueBased

SHARES = st.one_of(st.sampled_from([0.0, 0.1, -0.1]), st.floats(-1, 1).map(lambda x: round(x, 4)))
ROW = st.lists(SHARES, min_size=1, max_size=8)
TOTALS = st.lists(st.one_of(st.none(), SHARES), min_size=1, max_size=8)
GROUP = st.lists(st.tuples(ROW, st.sampled_from([True, True, True, False])), min_size=2, max_size=6)  # rows, measured
MARKED = st.lists(  # total, marks
    st.tuples(
        st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1).map(lambda x: round(x, 4))),
        st.lists(st.integers(0, 3), min_size=1, max_size=8),
    ),
    min_size=2,
    max_size=6,
)

Terminal = Callable[[Sequence[float | None]], list[float]]
PerTurn = Callable[[Sequence[Sequence[float]], Sequence[bool]], list[list[float]]]
PerUtterance = Callable[[Sequence[float | None], Sequence[Sequence[int]]], list[list[float]]]


def our_turn_credit(rewards: Sequence[Sequence[float]], measured: Sequence[bool]) -> list[list[float]]:
    scores = [
        Score(name="emotion", value=0.5 if known else None, per_turn=tuple(row))
        for row, known in zip(rewards, measured, strict=True)
    ]
    credit = GroupRelative(len(scores), kind="turn").of(scores, [len(row) for row in rewards])
    return [list(row) for row in credit.turns]


def marked_by_the_client(total: float | None, marks: Sequence[int]) -> Score:
    """Ten points of change have the full mark, and each third of them one."""
    return Score(name="emotion", value=total, per_turn=tuple(mark / 30 for mark in marks))


def marked_by_a_judge(total: float | None, marks: Sequence[int]) -> Score:
    """A judge's shares are its marks, 0 to 1, over the number of turns."""
    shares = tuple(mark / 3 / len(marks) for mark in marks)
    return Score(name="total", value=total, parts=(Score(name="rubric-x", value=sum(shares), per_turn=shares),))


def our_utterance_credit(make: Callable[[float | None, Sequence[int]], Score]) -> PerUtterance:
    attribution = "change" if make is marked_by_the_client else "rubric-x"

    def credit(totals: Sequence[float | None], marks: Sequence[Sequence[int]]) -> list[list[float]]:
        scores = [make(total, row) for total, row in zip(totals, marks, strict=True)]
        assigner = GroupRelative(len(scores), kind="utterance", attribution=attribution)
        return [list(row) for row in assigner.of(scores, [len(row) for row in marks]).turns]

    return credit


UTTERANCES = [our_utterance_credit(marked_by_the_client), our_utterance_credit(marked_by_a_judge)]


def assert_same(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, numbers in zip(found, expected, strict=True):
        assert list(row) == pytest.approx(list(numbers), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("terminal", [reference.terminal_credit, group_relative])
def test_a_whole_dialogue_is_measured_against_its_group(terminal: Terminal):
    # 0.3, 0.4 and 0.3: mean 1/3, deviation sqrt((1 + 4 + 1) / 900 / 2) = 0.057735; -0.033333 / 0.057835 = -0.57635.
    found = terminal([0.3, None, 0.4, 0.3])
    assert found == pytest.approx([-0.57635, 0, 1.15271, -0.57635], abs=1e-5)


@pytest.mark.parametrize("per_turn", [reference.turn_credit, our_turn_credit])
def test_a_turn_is_measured_against_the_group_s_same_turn_over_the_deviation_of_whole_dialogues(per_turn: PerTurn):
    # From turn 0 on: 0.3, 0.4, 0.3, as above. From turn 1 on two rows are left: 0.1 and 0.3 about 0.2, over the same
    # deviation: 0.1 / 0.057835 = 1.72906. Turn 2 has one row, so 0. The row without a total moves nothing.
    rows = [(0.2, 0.1), (9.0, 9.0), (0.4,), (0.0, 0.1, 0.2)]
    found = per_turn(rows, [True, False, True, True])
    assert found[0] == pytest.approx([-0.57635, -1.72906], abs=1e-5)
    assert found[1] == [0, 0]
    assert found[2] == pytest.approx([1.15271], abs=1e-5)
    assert found[3] == pytest.approx([-0.57635, 1.72906, 0], abs=1e-5)


@pytest.mark.parametrize("per_turn", [reference.turn_credit, our_turn_credit])
def test_a_group_whose_dialogues_earned_the_same_has_no_signal(per_turn: PerTurn):
    # 0.1 + 0.2 and 0.3 differ by rounding only.
    assert per_turn([(0.1, 0.2), (0.3, 0.0)], [True, True]) == [[0, 0], [0, 0]]
    assert per_turn([(0.1, 0.2), (0.9, 0.0)], [True, False]) == [[0, 0], [0, 0]]


@pytest.mark.parametrize("per_utterance", [reference.utterance_credit, *UTTERANCES])
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


@given(group=GROUP)
@settings(deadline=None, max_examples=300)
def test_advantages_of_turns_are_the_reference_s(group: list[tuple[list[float], bool]]):
    rewards, measured = [row for row, _ in group], [known for _, known in group]
    assert_same(our_turn_credit(rewards, measured), reference.turn_credit(rewards, measured))


@given(group=MARKED, ours=st.sampled_from(UTTERANCES))
@settings(deadline=None, max_examples=300)
def test_advantages_of_utterances_are_the_reference_s(group: list[tuple[float | None, list[int]]], ours: PerUtterance):
    totals, marks = [total for total, _ in group], [row for _, row in group]
    assert_same(ours(totals, marks), reference.utterance_credit(totals, marks))


@given(group=GROUP, seed=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_rows_and_a_row_without_a_total_change_no_advantage(
    group: list[tuple[list[float], bool]], seed: Random
):
    order = list(range(len(group)))
    seed.shuffle(order)
    plain = our_turn_credit([row for row, _ in group], [known for _, known in group])
    moved = [group[place] for place in order]
    found = our_turn_credit([*(row for row, _ in moved), [0.7, -0.7]], [*(known for _, known in moved), False])
    assert_same(found, [*(plain[place] for place in order), [0, 0]])


@given(totals=st.lists(SHARES, min_size=2, max_size=6), turns=st.integers(1, 5))
@settings(deadline=None)
def test_what_is_earned_at_the_end_alone_is_credited_to_every_turn_as_to_the_whole(totals: list[float], turns: int):
    rows = [[0.0] * (turns - 1) + [total] for total in totals]
    assert_same(our_turn_credit(rows, [True] * len(rows)), [[a] * turns for a in group_relative(totals)])


@given(group=st.lists(ROW, min_size=2, max_size=6))
@settings(deadline=None)
def test_the_advantages_of_a_turn_add_up_to_nothing(group: list[list[float]]):
    found = our_turn_credit(group, [True] * len(group))
    for turn in range(8):
        there = [row[turn] for row in found if turn < len(row)]
        assert sum(there) == pytest.approx(0, abs=1e-6)


def turns_of(mask: Grid) -> Grid:
    """A turn begins wherever a sampled token follows one that wasn't; -1 off the mask."""
    begins = (mask == 1) & (np.pad(mask, ((0, 0), (1, 0)))[:, :-1] == 0)
    return np.where(mask == 1, np.cumsum(begins, axis=1) - 1, -1)


def token_batch(turns: Grid, logps: Grid, ref_logps: Grid | None = None, values: Grid | None = None) -> TokenBatch:
    return TokenBatch(
        turns_BT=torch.tensor(turns).long(),
        logps_BT=torch.tensor(logps),
        ref_logps_BT=None if ref_logps is None else torch.tensor(ref_logps),
        values_BT=None if values is None else torch.tensor(values),
        gathered=lambda sums: sums,
    )


def test_a_turn_s_advantage_is_that_of_each_of_its_tokens_and_of_no_other():
    turns = np.array([[0, 0, -1, 1, -1], [0, -1, -1, -1, -1], [-1, -1, -1, -1, -1]])
    batch = token_batch(turns, np.full(turns.shape, -1.0))
    found = GroupRelative(3, kind="turn").spread([(0.5, -2.0), (1.5,), ()], batch)["advantages"]
    assert found.tolist() == [[0.5, 0.5, 0, -2, 0], [1.5, 0, 0, 0, 0], [0] * 5]
    assert GroupRelative(3).spread([(0.5,), (1.5,), (0.0,)], batch)["advantages"].tolist() == [0.5, 1.5, 0]


@given(mask=masks(), data=st.data(), discount=st.floats(0, 1), lam=st.floats(0, 1), kl=st.sampled_from([0.0, 0.1]))
@settings(deadline=None)
def test_ppo_s_tokens_get_the_reference_s_advantages_and_returns(
    mask: Grid, data: st.DataObject, discount: float, lam: float, kl: float
):
    turns = turns_of(mask)
    rewards, logps, ref_logps, values = (data.draw(grids(mask.shape, largest_power=1)) for _ in range(4))
    paths = [
        tuple(float(x) for x in row[: int(last) + 1]) for row, last in zip(rewards, turns.max(axis=1), strict=True)
    ]
    assigner = ValueBased("turn", discount=discount, lam=lam, reference_kl=kl)
    batch = token_batch(turns, logps, ref_logps if kl else None, values)
    found = assigner.spread([path or (0.0,) for path in paths], batch)
    expected = reference.token_rewards(paths, turns, kl, logps, ref_logps if kl else None)
    advantages, returns = reference.gae(expected, values, mask, discount, lam)
    scale = max(1.0, np.abs(returns).max(), np.abs(advantages).max())
    np.testing.assert_allclose(found["returns"].numpy(), returns, rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(found["old_values"].numpy(), values * mask, rtol=1e-6)
    spread = advantages[mask == 1]
    if spread.size and 0 < np.ptp(spread) < 1e-6 * scale:
        return  # what differs by rounding alone, whitened
    whitened = reference.whiten(advantages, mask)
    np.testing.assert_allclose(found["advantages"].numpy(), whitened, rtol=1e-6, atol=1e-6)
