"""Percentile bootstrap intervals over dialogues that are clustered by card.

Several dialogues with one card are not independent: the same person, need and temperament come back with every seed.
So the card is the unit. A resample draws cards with replacement, each with all its dialogues (cluster bootstrap), and a
card counts by the mean over its seeds; more seeds sharpen each card's mean, and never pose as more cards.

An outcome that no card or every card shows has an interval of no width, which says nothing about how rare it is, and an
interval over a handful of cards is narrower than it should be: read both beside ``cards``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from envs.trajectory import Record

# Summation order differs between processors; rounding here lets another machine recompute the same figures.
DIGITS = 6


class Resampling(Record):
    """How intervals are made: ``resamples`` draws of the cards from a generator seeded with ``seed``."""

    resamples: Annotated[int, Field(ge=1)] = 10_000
    seed: Annotated[int, Field(ge=0)] = 0


class Estimate(Record):
    """A mean, its 95 % interval (low, high), and what it rests on.

    ``n`` measured values over ``cards`` cards; ``missing`` values could not be measured and are left out. Without a
    value there is no mean, and with fewer than two cards no interval.
    """

    mean: float | None
    ci95: tuple[float, float] | None
    n: int
    cards: int
    missing: int = 0


def estimate_mean(values: Sequence[float | None], cards: Sequence[str], resampling: Resampling) -> Estimate:
    """The mean over cards of each card's mean; for a proportion, give 0 and 1. Arguments are (dialogues,) each."""
    pairs = [(card, value) for card, value in zip(cards, values, strict=True) if value is not None]
    totals, counts = _by_card([card for card, _ in pairs], [value for _, value in pairs], [1.0] * len(pairs))
    means = totals / counts
    mean, ci95 = _bootstrap(means, np.ones_like(means), resampling)
    return Estimate(mean=mean, ci95=ci95, n=len(pairs), cards=len(means), missing=len(values) - len(pairs))


def estimate_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    cards: Sequence[str],
    resampling: Resampling,
    transform: Callable[[float], float] = float,
) -> Estimate:
    """Sum of ``numerators`` over sum of ``denominators``, both (dialogues,): a share of replies, or words per reply.

    Long dialogues weigh more, as each of their replies does. A dialogue with denominator 0 counts as missing. ``n`` is
    the sum of the denominators. ``transform`` is applied to the ratio and to both ends, so it has to be increasing.
    """
    rows = [row for row in zip(cards, numerators, denominators, strict=True) if row[2] > 0]
    tops, bottoms = _by_card([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    mean, ci95 = _bootstrap(tops, bottoms, resampling, transform)
    missing = len(numerators) - len(rows)
    return Estimate(mean=mean, ci95=ci95, n=round(float(bottoms.sum())), cards=len(tops), missing=missing)


def estimate_by_group(
    values: Sequence[float | None], cards: Sequence[str], groups: Sequence[str], resampling: Resampling
) -> dict[str, Estimate]:
    """``estimate_mean`` within each group, by name. ``values``, ``cards`` and ``groups`` are (dialogues,)."""
    estimates = {}
    for group in sorted(set(groups)):
        rows = [(v, c) for v, c, g in zip(values, cards, groups, strict=True) if g == group]
        estimates[group] = estimate_mean([value for value, _ in rows], [card for _, card in rows], resampling)
    return estimates


def differences(before: Sequence[float | None], after: Sequence[float | None]) -> list[float | None]:
    """``after`` less ``before``, pair by pair; None where either side could not be measured."""
    return [None if b is None or a is None else a - b for b, a in zip(before, after, strict=True)]


def _by_card(
    cards: Sequence[str], numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums within each card, (cards,) each, sorted by card, so that the order of the dialogues changes nothing."""
    names, index = np.unique(np.array(cards, dtype=str), return_inverse=True)
    tops, bottoms = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(tops, index, numerators)
    np.add.at(bottoms, index, denominators)
    return tops, bottoms


def _bootstrap(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    resampling: Resampling,
    transform: Callable[[float], float] = float,
) -> tuple[float | None, tuple[float, float] | None]:
    """The ratio of sums over cards, (cards,) each, and its 2.5th and 97.5th percentile over resamples of the cards."""
    count = len(numerators)
    if count == 0:
        return None, None
    value = round(transform(numerators.sum() / denominators.sum()), DIGITS)
    if count < 2:
        return value, None
    drawn = np.random.default_rng(resampling.seed).integers(0, count, size=(resampling.resamples, count))
    ratios = numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return value, (round(transform(low), DIGITS), round(transform(high), DIGITS))
