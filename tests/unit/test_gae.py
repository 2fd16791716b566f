"""PPO's numbers, in ``trainers.gae``, against hand-worked numbers and a reference in plain loops.

The hand-worked cases are put to both, so that the reference is no authority of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tests.reference import Grid, grids, masks
from trainers import gae as ours

FACTORS = st.one_of(st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.floats(0, 1))  # a discount or a lambda
JUNK = 1e6  # stands where no token was sampled


def tensor(grid: Grid) -> torch.Tensor:
    return torch.tensor(grid, dtype=torch.float64)


def our_gae(rewards: Grid, values: Grid, mask: Grid, discount: float, lam: float) -> tuple[Grid, Grid]:
    advantages, returns = ours.gae(tensor(rewards), tensor(values), tensor(mask), discount, lam)
    return advantages.numpy(), returns.numpy()


def alone(x: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks of a run with one."""
    return x


def our_whiten(x: Grid, mask: Grid) -> Grid:
    return ours.whiten(tensor(x), tensor(mask), alone).numpy()


def our_value_loss(values: Grid, old: Grid, returns: Grid, mask: Grid, clip: float) -> tuple[Grid, Grid]:
    """Losses, and the slope of each by its value."""
    given_values = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    losses = ours.value_loss(given_values, tensor(old), tensor(returns), tensor(mask), clip)
    losses.sum().backward()
    assert given_values.grad is not None
    return losses.detach().numpy(), given_values.grad.numpy()


def our_token_rewards(
    turn_rewards: Sequence[Sequence[float]], turns: Grid, kl_coef: float, logps: Grid, ref_logps: Grid | None
) -> Grid:
    references = None if ref_logps is None else torch.tensor(ref_logps)
    rows = [tuple(row) for row in turn_rewards]
    return ours.token_rewards(rows, torch.tensor(turns).long(), kl_coef, torch.tensor(logps), references).numpy()


def grid(*rows: Sequence[float]) -> Grid:
    return np.array(rows, dtype=np.float64)


def assert_same(found: Grid, expected: Grid, *seen: Grid) -> None:
    """Equal to 1e-6 of the largest number that was put in or comes out."""
    scale = max([1e-6, *(np.abs(numbers).max(initial=0.0) for numbers in (expected, *seen))])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)


def rearranged(rng: np.random.Generator, *grids: Grid) -> tuple[list[Grid], np.ndarray]:
    """The grids with columns of junk at the same places and their rows in another order; and that order. The last is
    the mask, which knows the junk as such."""
    rows, columns = grids[-1].shape
    places, order = rng.integers(0, columns + 1, size=3), rng.permutation(rows)
    fills = [JUNK] * (len(grids) - 1) + [0]
    return [np.insert(grid, places, fill, axis=1)[order] for grid, fill in zip(grids, fills, strict=True)], order


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[Grid, Grid, Grid]:
    """Rewards, values and a mask, with junk where nothing was sampled."""
    mask = draw(masks())
    rewards, values = draw(grids(mask.shape)), draw(grids(mask.shape))
    return np.where(mask == 1, rewards, JUNK), np.where(mask == 1, values, -JUNK), mask


@pytest.mark.parametrize("gae", [reference.gae, our_gae])
def test_the_client_s_words_neither_decay_nor_bootstrap(gae: Callable[..., tuple[Grid, Grid]]):
    # Sampled: places 0, 1 and 3, values 0.5, 0.4 and 0.2, a reward of 1 on the last; discount 0.9, lambda 0.8.
    # Deltas: 0.9 x 0.4 - 0.5 = -0.14; 0.9 x 0.2 - 0.4 = -0.22; 1 - 0.2 = 0.8. With 0.9 x 0.8 = 0.72, backwards:
    # 0.8; -0.22 + 0.72 x 0.8 = 0.356; -0.14 + 0.72 x 0.356 = 0.11632. Returns: these plus the values.
    mask = grid([1, 1, 0, 1, 0])
    advantages, returns = gae(grid([0, 0, 7, 1, 7]), grid([0.5, 0.4, 7, 0.2, 7]), mask, 0.9, 0.8)
    assert advantages[0] == pytest.approx([0.11632, 0.356, 0, 0.8, 0])
    assert returns[0] == pytest.approx([0.61632, 0.756, 0, 1.0, 0])


@pytest.mark.parametrize("gae", [reference.gae, our_gae])
def test_a_reward_is_discounted_once_for_each_sampled_token_on_its_way(gae: Callable[..., tuple[Grid, Grid]]):
    # Values 0, lambda 1, discount 0.5: 8 on the last of four sampled tokens is 4, 2 and 1 before it, whatever the two
    # words between them; 1 on the second adds 1 there and 0.5 on the first.
    mask = grid([1, 1, 0, 0, 1, 1])
    _, returns = gae(grid([0, 1, 0, 0, 0, 8]), np.zeros((1, 6)), mask, 0.5, 1.0)
    assert returns[0] == pytest.approx([1 + 0.5, 2 + 1, 0, 0, 4, 8])


@given(rollout=rollouts(), discount=FACTORS, lam=FACTORS)
@settings(deadline=None, max_examples=300)
def test_advantages_and_returns_are_the_reference_s(rollout: tuple[Grid, Grid, Grid], discount: float, lam: float):
    rewards, values, mask = rollout
    advantages, returns = our_gae(rewards, values, mask, discount, lam)
    expected_advantages, expected_returns = reference.gae(rewards, values, mask, discount, lam)
    assert_same(advantages, expected_advantages, rewards * mask, values * mask)
    assert_same(returns, expected_returns, rewards * mask, values * mask)
    assert (advantages[mask == 0] == 0).all() and (returns[mask == 0] == 0).all()


@given(rollout=rollouts())
@settings(deadline=None)
def test_without_discount_and_with_lambda_1_a_return_is_the_sum_of_what_follows(rollout: tuple[Grid, Grid, Grid]):
    rewards, values, mask = rollout
    _, returns = our_gae(rewards, values, mask, 1.0, 1.0)
    to_go = np.cumsum((rewards * mask)[:, ::-1], axis=1)[:, ::-1] * mask
    assert_same(returns, to_go, rewards * mask, values * mask)


@given(rollout=rollouts(), discount=FACTORS)
@settings(deadline=None)
def test_with_lambda_0_an_advantage_is_one_step_s_surprise(rollout: tuple[Grid, Grid, Grid], discount: float):
    rewards, values, mask = rollout
    advantages, _ = our_gae(rewards, values, mask, discount, 0.0)
    for row in range(mask.shape[0]):
        places = np.flatnonzero(mask[row])
        following = np.append(values[row, places], 0.0)[1:]
        surprise = rewards[row, places] + discount * following - values[row, places]
        assert_same(advantages[row, places], surprise, rewards * mask, values * mask)


@given(rollout=rollouts(), lam=FACTORS, seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_padding_anywhere_and_the_order_of_rows_change_no_advantage(
    rollout: tuple[Grid, Grid, Grid], lam: float, seed: int
):
    (rewards, values, mask), order = rearranged(np.random.default_rng(seed), *rollout)
    plain = our_gae(*rollout, 0.9, lam)
    for found, expected in zip(our_gae(rewards, values, mask, 0.9, lam), plain, strict=True):
        assert_same(found[mask == 1], expected[order][rollout[2][order] == 1])


@given(path=st.lists(st.lists(st.integers(0, 100), min_size=2, max_size=9), min_size=1, max_size=5))
@settings(deadline=None)
def test_the_changes_of_emotion_on_the_way_add_up_to_what_the_dialogue_gained(path: list[list[int]]):
    """Rewards per turn (e_t - e_{t-1}) / 100 telescope: the first token's return is (e_T - e_0) / 100."""
    width = 3 * max(len(row) for row in path)
    turns, changes = np.full((len(path), width), -1.0), []
    for row, emotions in enumerate(path):
        changes.append([(after - before) / 100 for before, after in pairwise(emotions)])
        for turn in range(len(emotions) - 1):
            turns[row, 3 * turn : 3 * turn + 2] = turn
    mask, nothing = (turns >= 0).astype(np.float64), np.zeros(turns.shape)
    rewards = our_token_rewards(changes, turns, 0.0, nothing, None)
    _, returns = our_gae(rewards, nothing, mask, 1.0, 1.0)
    assert_same(returns[:, 0], np.array([(row[-1] - row[0]) / 100 for row in path]))


@pytest.mark.parametrize("whiten", [reference.whiten, our_whiten])
def test_whitening_takes_mean_and_deviation_over_the_sampled_tokens_of_all_rows(whiten: Callable[..., Grid]):
    # 1, 3 and 5, 7: mean 4, deviation over N sqrt((9 + 1 + 1 + 9) / 4) = sqrt 5 = 2.23607.
    found = whiten(grid([1, 99, 3], [5, 7, 99]), grid([1, 0, 1], [1, 1, 0]))
    unit = 1 / np.sqrt(5)
    assert found == pytest.approx(grid([-3 * unit, 0, -unit], [unit, 3 * unit, 0]))


@given(mask=masks(), data=st.data(), centre=st.sampled_from([0.0, -1.0, 100.0]))
@settings(deadline=None, max_examples=200)
def test_whitened_numbers_are_the_reference_s(mask: Grid, data: st.DataObject, centre: float):
    drawn = data.draw(grids(mask.shape))
    x = np.where(mask == 1, drawn + centre * np.abs(drawn).max(), JUNK)
    found = our_whiten(x, mask)
    assert_same(found, reference.whiten(x, mask))
    assert np.isfinite(found).all() and (found[mask == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [0.0, 0.1, -1e-7, 1 / 3, 12345.678, 1e6 / 3])
def test_whitening_without_spread_gives_zeros(number: float, dtype: torch.dtype):
    for count in range(25):
        mask = (torch.arange(24) < count).to(dtype).view(2, 12)
        found = ours.whiten(mask * number + (1 - mask) * JUNK, mask, alone)
        assert found.dtype == dtype and (found == 0).all(), count


@given(mask=masks().filter(lambda mask: mask.shape[0] > 1), data=st.data())
@settings(deadline=None, max_examples=30)
def test_whitening_on_several_ranks_is_whitening_of_all_their_rows(mask: Grid, data: st.DataObject):
    """Each row is a rank of its own, also one on which nothing was sampled; all have to ask equally often."""
    x = np.where(mask == 1, data.draw(grids(mask.shape)), JUNK)
    ranks = mask.shape[0]
    shares: list[torch.Tensor] = [torch.zeros(())] * ranks
    meeting = threading.Barrier(ranks, timeout=20)

    def on_rank(rank: int) -> Grid:
        def gathered(share: torch.Tensor) -> torch.Tensor:
            shares[rank] = share
            meeting.wait()
            total = torch.stack(shares).sum(0)
            meeting.wait()
            return total

        return ours.whiten(tensor(x[[rank]]), tensor(mask[[rank]]), gathered).numpy()

    with ThreadPoolExecutor(ranks) as pool:
        found = np.concatenate(list(pool.map(on_rank, range(ranks))))
    assert_same(found, reference.whiten(x, mask))


@given(mask=masks(), data=st.data(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_padding_anywhere_and_the_order_of_rows_change_no_whitened_number(mask: Grid, data: st.DataObject, seed: int):
    x = data.draw(grids(mask.shape))
    (changed_x, changed_mask), order = rearranged(np.random.default_rng(seed), x, mask)
    assert_same(our_whiten(changed_x, changed_mask)[changed_mask == 1], our_whiten(x, mask)[order][mask[order] == 1])


@pytest.mark.parametrize("value_loss", [reference.value_loss, our_value_loss])
def test_a_value_that_moved_past_its_clip_is_held_to_the_worse_of_two_losses(value_loss: Callable[..., tuple]):
    # Old 1, clip 0.2: values are kept in [0.8, 1.2]. Returns 2, 2, 1, and 2 on the client's word.
    # 1.1 -> 0.5 x 0.81 = 0.405, slope -0.9. 1.5 -> kept 1.2: max(0.125, 0.32) = 0.32, slope 0.
    # 1.5 against 1 -> max(0.125, 0.02) = 0.125, slope 0.5.
    losses, slopes = value_loss(
        grid([1.1, 1.5, 1.5, 9]), grid([1, 1, 1, 1]), grid([2, 2, 1, 2]), grid([1, 1, 1, 0]), 0.2
    )
    assert losses[0] == pytest.approx([0.405, 0.32, 0.125, 0])
    assert slopes[0] == pytest.approx([-0.9, 0, 0.5, 0])


@given(mask=masks(), data=st.data(), clip=st.sampled_from([0.0, 0.2, 0.5, 10.0]))
@settings(deadline=None, max_examples=200)
def test_value_losses_and_their_slopes_are_the_reference_s(mask: Grid, data: st.DataObject, clip: float):
    values, moves, returns = (data.draw(grids(mask.shape)) for _ in range(3))
    old = values + moves
    # Where both losses are equal though the value was clipped, the slope may be either's.
    kept = np.clip(values, old - clip, old + clip)
    edge = (np.isclose(np.abs(kept - returns), np.abs(values - returns)) & (kept != values)) | np.isclose(
        np.abs(moves), clip
    )
    losses, slopes = our_value_loss(values, old, returns, mask, clip)
    expected_losses, expected_slopes = reference.value_loss(values, old, returns, mask, clip)
    assert_same(losses, expected_losses)
    assert_same(np.where(edge, 0, slopes), np.where(edge, 0, expected_slopes))
    assert (losses[mask == 0] == 0).all() and (slopes[mask == 0] == 0).all()


@pytest.mark.parametrize("token_rewards", [reference.token_rewards, our_token_rewards])
def test_a_turn_s_reward_stands_on_its_last_token_and_each_token_pays_for_its_divergence(
    token_rewards: Callable[..., Grid],
):
    # Turn 0 on places 0 and 1, turn 1 on place 3. KL 0.1 x (logp - ref): 0.1 x 1, 0.1 x -0.5, 0.1 x 0.
    turns, logps = grid([0, 0, -1, 1, -1]), grid([-1, -2, -9, -1, -9])
    ref_logps = grid([-2, -1.5, -1, -1, -1])
    found = token_rewards([(0.3, -0.2)], turns, 0.1, logps, ref_logps)
    assert found[0] == pytest.approx([-0.1, 0.3 + 0.05, 0, -0.2, 0])
    assert token_rewards([(0.3, -0.2)], turns, 0.1, logps, None)[0] == pytest.approx([0, 0.3, 0, -0.2, 0])


@given(mask=masks(), data=st.data(), kl_coef=st.sampled_from([0.0, 0.04, 1.0]), with_reference=st.booleans())
@settings(deadline=None, max_examples=200)
def test_token_rewards_are_the_reference_s_and_add_up_to_the_turns_less_the_divergence(
    mask: Grid, data: st.DataObject, kl_coef: float, with_reference: bool
):
    # A turn begins wherever a sampled token follows one that wasn't.
    begins = (mask == 1) & (np.pad(mask, ((0, 0), (1, 0)))[:, :-1] == 0)
    turns = np.where(mask == 1, np.cumsum(begins, axis=1) - 1, -1)
    drawn = data.draw(grids(mask.shape))
    turn_rewards = [tuple(float(x) for x in drawn[row, : begins[row].sum()]) for row in range(mask.shape[0])]
    logps = -np.abs(data.draw(grids(mask.shape, largest_power=1)))
    ref_logps = -np.abs(data.draw(grids(mask.shape, largest_power=1))) if with_reference else None
    found = our_token_rewards(turn_rewards, turns, kl_coef, logps, ref_logps)
    expected = reference.token_rewards(turn_rewards, turns, kl_coef, logps, ref_logps)
    assert_same(found, expected)
    assert (found[mask == 0] == 0).all()
    divergence = 0.0 if ref_logps is None else ((logps - ref_logps) * mask).sum(axis=1)
    whole = np.array([sum(row) for row in turn_rewards]) - kl_coef * divergence
    assert_same(found.sum(axis=1), whole, expected)
