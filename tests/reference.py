"""What the algorithms' papers say, in plain loops over float64: the tests compare ours and TRL's with it.

Written from the papers, and without a look at ``trainers/``: slow, one token at a time, and where there is a choice by
another formula than an implementation would take (GAE as the sum over what follows, not by recursion). Gradients are
worked by hand. GAE: arXiv 1506.02438; PPO: 1707.06347; GRPO: 2402.03300; Dr. GRPO: 2503.20783; DAPO: 2503.14476; GSPO:
2507.18071; CISPO: 2506.13585; credit for each utterance: Sotopia-RL, 2508.03905.

Shapes: (B, T) arrays hold one row for each dialogue and one column for each token after the prompt; ``mask`` is 1 on
the tokens that the policy sampled and 0 on the client's words and on padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

Grid = np.ndarray[Any, np.dtype[np.float64]]  # (B, T)

STD_FLOOR = 1e-4  # of a group
WHITENING_FLOOR = 1e-8  # of a batch
SAME = 1e-9  # a group whose outcomes lie no further apart is flat


def sampled(mask: Grid, row: int) -> list[int]:
    """The columns of one row that the policy sampled, in order."""
    return [column for column in range(mask.shape[1]) if mask[row, column]]


def gae(rewards: Grid, values: Grid, mask: Grid, discount: float, lam: float) -> tuple[Grid, Grid]:
    """Advantages and returns (B, T): A_k = sum over l of (discount lam)^l delta_{k+l} over the row's sampled tokens
    alone, delta_k = r_k + discount V_{k+1} - V_k, and V = 0 behind the last one (equations 11 and 16)."""
    advantages, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for row in range(mask.shape[0]):
        columns = sampled(mask, row)
        worth = [values[row, column] for column in columns] + [0.0]
        deltas = [rewards[row, c] + discount * worth[k + 1] - worth[k] for k, c in enumerate(columns)]
        for k, column in enumerate(columns):
            terms = [(discount * lam) ** ahead * delta for ahead, delta in enumerate(deltas[k:])]
            advantages[row, column] = math.fsum(terms)
            returns[row, column] = advantages[row, column] + worth[k]
    return advantages, returns


def whiten(x: Grid, mask: Grid) -> Grid:
    """(x - mean) / (std + 1e-8) over the batch's sampled tokens, std over N; all 0 where they are equal."""
    found = np.zeros(mask.shape)
    numbers = [x[row, column] for row in range(mask.shape[0]) for column in sampled(mask, row)]
    if not numbers or max(numbers) == min(numbers):
        return found
    mean = math.fsum(numbers) / len(numbers)
    std = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / len(numbers))
    for row in range(mask.shape[0]):
        for column in sampled(mask, row):
            found[row, column] = (x[row, column] - mean) / (std + WHITENING_FLOOR)
    return found


def value_loss(values: Grid, old_values: Grid, returns: Grid, mask: Grid, clip: float) -> tuple[Grid, Grid]:
    """Losses (B, T) and the slope of each by its value: 0.5 max((v - R)^2, (v' - R)^2), v' = v kept within ``clip`` of
    the old value. The clip is that of PPO's released code (OpenAI baselines); its paper has the square alone."""
    losses, slopes = np.zeros(mask.shape), np.zeros(mask.shape)
    for row in range(mask.shape[0]):
        for column in sampled(mask, row):
            value, old, target = values[row, column], old_values[row, column], returns[row, column]
            kept = min(max(value, old - clip), old + clip)
            free_loss, kept_loss = 0.5 * (value - target) ** 2, 0.5 * (kept - target) ** 2
            losses[row, column] = max(free_loss, kept_loss)
            slopes[row, column] = 0.0 if kept_loss > free_loss else value - target
    return losses, slopes


def token_rewards(
    turn_rewards: Sequence[Sequence[float]], turns: Grid, kl_coef: float, logps: Grid, ref_logps: Grid | None
) -> Grid:
    """PPO's rewards (B, T): a turn's on its last sampled token; each sampled token pays kl_coef (logp - ref logp)."""
    rewards = np.zeros(turns.shape)
    for row in range(turns.shape[0]):
        for turn, reward in enumerate(turn_rewards[row]):
            places = [column for column in range(turns.shape[1]) if turns[row, column] == turn]
            if places:
                rewards[row, max(places)] += reward
        for column in range(turns.shape[1]):
            if turns[row, column] >= 0 and ref_logps is not None:
                rewards[row, column] -= kl_coef * (logps[row, column] - ref_logps[row, column])
    return rewards


@dataclass(frozen=True)
class Batch:
    """What a policy loss reads, (B, T) each: log-probabilities in nats of the policy, of the policy that the update
    started from, and of the reference; and the ratio of that policy's probability to the sampler's."""

    logps: Grid
    old_logps: Grid
    ref_logps: Grid
    advantages: Grid
    sampler_ratios: Grid
    mask: Grid

    def rows(self, first: int, last: int) -> Batch:
        """The rows from ``first`` up to ``last``."""
        return Batch(**{name: grid[first:last] for name, grid in vars(self).items()})


@dataclass(frozen=True)
class Rule:
    """How token losses are clipped and averaged; the ratio stays within [1 - low, 1 + high], ``max_length`` in tokens.

    Averages: grpo and gspo over a dialogue's tokens, then over dialogues; dr_grpo over dialogues, each divided by
    ``max_length``; dapo, cispo and bnpo over all tokens of the batch (bnpo's batch is what one rank computes at once).
    """

    loss_type: str
    low: float
    high: float
    beta: float
    max_length: int


def token_weight(rule: Rule, mask: Grid, row: int) -> float:
    """What each of a row's tokens counts in the batch's loss."""
    rows, tokens, whole = mask.shape[0], len(sampled(mask, row)), int(mask.sum())
    if rule.loss_type in ("grpo", "gspo"):
        return 1 / rows / max(tokens, 1)
    if rule.loss_type == "dr_grpo":
        return 1 / rows / rule.max_length
    assert rule.loss_type in ("dapo", "cispo", "bnpo")
    return 1 / max(whole, 1)


def ratio(rule: Rule, batch: Batch, row: int, column: int) -> float:
    """Probability under the policy over that before the update: a token's, or (gspo) the geometric mean of a row's."""
    columns = sampled(batch.mask, row) if rule.loss_type == "gspo" else [column]
    changes = [batch.logps[row, place] - batch.old_logps[row, place] for place in columns]
    return math.exp(math.fsum(changes) / len(changes))


def policy_loss(rule: Rule, batch: Batch) -> tuple[float, Grid]:
    """The loss over all sampled tokens, and its gradient (B, T) by the policy's log-probabilities.

    Clipped: -min(ratio A, kept ratio A). CISPO: -(ratio kept under 1 + high, held fixed) A logp; no lower bound, as its
    authors train. KL: beta (exp(ref - logp) - (ref - logp) - 1). The sampler's ratio weighs the first part, not the KL.
    """
    loss, gradient = 0.0, np.zeros(batch.mask.shape)
    for row in range(batch.mask.shape[0]):
        columns, weight = sampled(batch.mask, row), token_weight(rule, batch.mask, row)
        for column in columns:
            advantage, logp = batch.advantages[row, column], batch.logps[row, column]
            now = ratio(rule, batch, row, column)
            trusted = weight * batch.sampler_ratios[row, column]
            if rule.loss_type == "cispo":
                loss -= trusted * min(now, 1 + rule.high) * advantage * logp
                gradient[row, column] -= trusted * min(now, 1 + rule.high) * advantage
            else:
                free, kept = now * advantage, min(max(now, 1 - rule.low), 1 + rule.high) * advantage
                loss -= trusted * min(free, kept)
                slope = trusted * free if free <= kept else 0.0  # d ratio / d logp = ratio
                for place in columns if rule.loss_type == "gspo" else [column]:
                    gradient[row, place] -= slope / (len(columns) if rule.loss_type == "gspo" else 1)
            away = batch.ref_logps[row, column] - logp
            loss += weight * rule.beta * (math.exp(away) - away - 1)
            gradient[row, column] += weight * rule.beta * (1 - math.exp(away))
    return loss, gradient


def deviation(numbers: Sequence[float]) -> float:
    """The sample's standard deviation, over n - 1."""
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))


def is_flat(outcomes: Sequence[float]) -> bool:
    """Whether a group's measured outcomes tell its rows apart in nothing."""
    return len(outcomes) < 2 or max(outcomes) - min(outcomes) <= SAME


def terminal_credit(totals: Sequence[float | None]) -> list[float]:
    """One group's advantages: total less the mean, over deviation + 1e-4, of those that have a total; 0 elsewhere."""
    known = [total for total in totals if total is not None]
    if is_flat(known):
        return [0.0] * len(totals)
    mean = math.fsum(known) / len(known)
    return [0.0 if total is None else (total - mean) / (deviation(known) + STD_FLOOR) for total in totals]


def turn_credit(rewards: Sequence[Sequence[float]], measured: Sequence[bool]) -> list[list[float]]:
    """One group's advantages, one for each turn of each row: what the row earned from there on, less the mean of what
    the rows with that turn did, over the deviation of whole dialogues + 1e-4. A row without a total is left out."""
    to_go = [[math.fsum(row[turn:]) for turn in range(len(row))] for row in rewards]
    whole = [math.fsum(row) for row, known in zip(rewards, measured, strict=True) if known]
    return _against_the_same_turn(to_go, measured, whole)


def utterance_credit(totals: Sequence[float | None], marks: Sequence[Sequence[int]]) -> list[list[float]]:
    """One group's advantages, one for each turn: r_t = (mark / 3) total, marks 0 to 3, less the mean of the group's at
    the same turn, over the deviation of the dialogues' mean r + 1e-4. A row without a total is left out."""
    shares = [[mark / 3 * (total or 0.0) for mark in row] for total, row in zip(totals, marks, strict=True)]
    measured = [total is not None for total in totals]
    means = [math.fsum(row) / len(row) for row, known in zip(shares, measured, strict=True) if known]
    return _against_the_same_turn(shares, measured, means)


def _against_the_same_turn(
    numbers: Sequence[Sequence[float]], measured: Sequence[bool], dialogues: Sequence[float]
) -> list[list[float]]:
    """Each number less the mean of those at the same turn, over the deviation of the ``dialogues``' numbers + 1e-4."""
    found = [[0.0] * len(row) for row in numbers]
    if is_flat(dialogues):
        return found
    for turn in range(max(len(row) for row in numbers)):
        there = [place for place, row in enumerate(numbers) if measured[place] and turn < len(row)]
        if len(there) < 2:
            continue
        mean = math.fsum(numbers[place][turn] for place in there) / len(there)
        for place in there:
            found[place][turn] = (numbers[place][turn] - mean) / (deviation(dialogues) + STD_FLOOR)
    return found


@st.composite
def masks(draw: st.DrawFn) -> Grid:
    """Random masks (B, T), B 1 to 6 and T 1 to 24: scattered, all sampled, none sampled, or runs as in a dialogue."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    runs = st.lists(st.integers(1, 6), min_size=columns, max_size=columns)
    row = st.one_of(
        st.lists(st.integers(0, 1), min_size=columns, max_size=columns),
        st.sampled_from([[1] * columns, [0] * columns]),
        runs.map(lambda lengths: [(k + 1) % 2 for k, length in enumerate(lengths) for _ in range(length)][:columns]),
    )
    return np.array(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=np.float64)


@st.composite
def grids(draw: st.DrawFn, shape: tuple[int, ...], largest_power: int = 4) -> Grid:
    """Random numbers (B, T) about 0, all of one size, in some with zeros and equal numbers among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = rng.normal(size=shape) * 10.0 ** draw(st.integers(-4, largest_power))
    kind = draw(st.sampled_from(["dense", "dense", "sparse", "coarse"]))
    if kind == "sparse":
        numbers *= rng.random(size=shape) < 0.2
    return np.round(numbers) if kind == "coarse" else numbers
