"""How far two raters agree: intraclass correlations, their bootstrap intervals, and the pairs that one of them ordered.

ICC(C,1) asks whether the raters rank alike, ICC(A,1) whether they give the same numbers; both for a single rater, of
the two-way model (McGraw & Wong 1996, doi:10.1037/1082-989X.1.1.30). They are computed over the ratings of single
responses, which is the level of a reward, and over each responder's mean, which is the level that MentalBench
publishes (arXiv 2510.19032).

Shapes: N rows (responses), A axes, R responders, B resamples. Intervals are percentiles. MentalBench's leave resamples
with a negative coefficient out; these keep them, since leaving them out makes a poor rater look better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHUNK = 64  # resamples drawn at once: bounds the memory at 64 x N counts
TINY = 1e-12  # a variance below it is rounding
DEFINED = 0.95  # share of resamples that must have a coefficient for an interval to be told


@dataclass(frozen=True)
class Icc:
    """ICC(C,1) and ICC(A,1), and their resamples; NaN where both raters gave one rating to everything."""

    c1: Floats
    a1: Floats


def icc(ratings: Floats) -> tuple[float, float]:
    """ICC(C,1) and ICC(A,1) of ``ratings`` (n things, k raters), from the mean squares of the two-way layout."""
    n, k = ratings.shape
    grand, rows, columns = ratings.mean(), ratings.mean(axis=1), ratings.mean(axis=0)
    between_rows = k * ((rows - grand) ** 2).sum() / (n - 1)
    between_columns = n * ((columns - grand) ** 2).sum() / (k - 1)
    error = ((ratings - rows[:, None] - columns[None, :] + grand) ** 2).sum() / ((n - 1) * (k - 1))
    c1, a1 = _coefficients(between_rows, between_columns, error, n, k)
    return float(c1), float(a1)


def two_rater_icc(counts: Floats, sums: Floats) -> Icc:
    """``icc`` for two raters from ``sums`` (B, A, 5) of x, y, xx, yy, xy over ``counts`` (B,) things; (B, A) each."""
    n = counts[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y, xx, yy, xy = np.moveaxis(sums / n[:, :, None], -1, 0)
        total, shared = (xx - x * x) + (yy - y * y), 2 * (xy - x * y)
        scale = n / (2 * (n - 1))
        c1, a1 = _coefficients(scale * (total + shared), n * (x - y) ** 2 / 2, scale * (total - shared), n, 2)
    return Icc(c1, a1)


def _coefficients(rows: Floats, columns: Floats, error: Floats, n: Floats | int, k: int) -> tuple[Floats, Floats]:
    """McGraw & Wong's two ratios from the mean squares; NaN where the ratings don't vary."""
    consistent = rows + (k - 1) * error
    absolute = consistent + k / n * (columns - error)
    with np.errstate(divide="ignore", invalid="ignore"):
        c1 = np.where(np.abs(consistent) > TINY, (rows - error) / consistent, np.nan)
        a1 = np.where((np.abs(absolute) > TINY) & ~np.isnan(c1), (rows - error) / absolute, np.nan)
    return c1, a1


def moments(x: Floats, y: Floats) -> Floats:
    """x, y, xx, yy, xy of two raters' ratings, (..., A) each -> (..., A, 5), both moved by one constant."""
    middle = (np.nanmean(x) + np.nanmean(y)) / 2  # a resample without a responder has NaN for its mean
    x, y = x - middle, y - middle
    return np.stack([x, y, x * x, y * y, x * y], axis=-1)


@dataclass(frozen=True)
class Level:
    """Every axis' coefficients at one level, (1, A), and their resamples over responders and over rows, (B, A)."""

    value: Icc
    over_responders: Icc | None
    over_items: Icc


def _weighted(weights: Floats, features: Floats) -> Icc:
    """The coefficients where each thing counts ``weights`` (B, n) times; ``features`` (n, A, 5)."""
    sums = _sums(weights, features)
    return two_rater_icc(weights.sum(axis=1), sums)


def _sums(weights: Floats, features: Floats) -> Floats:
    """Weighted sums, (B, n) and (n, A, 5) -> (B, A, 5)."""
    return (weights @ features.reshape(len(features), -1)).reshape(len(weights), *features.shape[1:])


def item_level(x: Floats, y: Floats, responders: NDArray[np.int64] | None, resamples: int, seed: int) -> Level:
    """Agreement over single responses: ``x``, ``y`` (N, A), ``responders`` (N,) numbered from 0."""
    features = moments(x, y)
    parts = [_weighted(weights, features) for weights in draws(len(x), resamples, seed)]
    by_responder = None
    if responders is not None:
        count = int(responders.max()) + 1
        sums = np.zeros((count, *features.shape[1:]))
        np.add.at(sums, responders, features)
        sizes = np.bincount(responders, minlength=count).astype(float)
        drawn = [two_rater_icc(weights @ sizes, _sums(weights, sums)) for weights in draws(count, resamples, seed)]
        by_responder = _joined(drawn)
    return Level(_weighted(np.ones((1, len(x))), features), by_responder, _joined(parts))


def responder_level(x: Floats, y: Floats, responders: NDArray[np.int64], resamples: int, seed: int) -> Level:
    """Agreement over the responders' means: ``x``, ``y`` (N, A), ``responders`` (N,) numbered from 0."""
    order = np.argsort(responders, kind="stable")
    both = np.concatenate([x, y], axis=1)[order]
    starts = np.searchsorted(responders[order], np.arange(int(responders.max()) + 2))
    parts = []
    for weights in draws(len(x), resamples, seed):
        parts.append(_of_means(_means(weights[:, order], both, starts)))
    means = _means(np.ones((1, len(x))), both, starts)
    features = moments(means[0, :, : x.shape[1]], means[0, :, x.shape[1] :])
    by_responder = [_weighted(weights, features) for weights in draws(means.shape[1], resamples, seed)]
    return Level(_of_means(means), _joined(by_responder), _joined(parts))


def _means(weights: Floats, both: Floats, starts: NDArray[np.int64]) -> Floats:
    """Each responder's means, (B, R, 2A); NaN where a resample holds none of its rows."""
    means = np.empty((len(weights), len(starts) - 1, both.shape[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        for index, (start, end) in enumerate(pairwise(starts)):
            part = weights[:, start:end]
            means[:, index] = (part @ both[start:end]) / part.sum(axis=1, keepdims=True)
    return means


def _of_means(means: Floats) -> Icc:
    """The coefficients over responders' means (B, R, 2A)."""
    resamples, responders, width = means.shape
    features = moments(means[:, :, : width // 2], means[:, :, width // 2 :])
    return two_rater_icc(np.full(resamples, float(responders)), features.sum(axis=1))


def draws(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of ``n`` things is drawn in each of ``resamples`` draws with replacement, (up to CHUNK, n)."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = generator.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)


def _joined(parts: list[Icc]) -> Icc:
    return Icc(np.concatenate([part.c1 for part in parts]), np.concatenate([part.a1 for part in parts]))


def interval(values: Floats) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentile of resamples (B,); None where too many of them have no coefficient."""
    defined = values[np.isfinite(values)]
    if len(defined) < DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class PairCounts:
    """For each axis, (A,): pairs that people ordered, those the judge ties on, those it orders the other way round."""

    ordered: NDArray[np.int64]
    ties: NDArray[np.int64]
    inversions: NDArray[np.int64]


def count_pairs(human: Floats, judge: Floats, conversations: NDArray[np.int64], margin: float) -> PairCounts:
    """Every two responses to one conversation whose human ratings differ by ``margin`` or more; ratings (N, A)."""
    order = np.argsort(conversations, kind="stable")
    human, judge, conversations = human[order], judge[order], conversations[order]
    ordered, ties, inversions = np.zeros((3, human.shape[1]), dtype=np.int64)
    largest = int(np.bincount(conversations).max())
    for apart in range(1, largest):
        same = conversations[apart:] == conversations[:-apart]
        by_people = (human[apart:] - human[:-apart])[same]
        by_judge = (judge[apart:] - judge[:-apart])[same]
        differs = np.abs(by_people) >= margin - 1e-9
        tied = np.abs(by_judge) < 1e-9
        ordered += differs.sum(axis=0)
        ties += (differs & tied).sum(axis=0)
        inversions += (differs & ~tied & (np.sign(by_people) != np.sign(by_judge))).sum(axis=0)
    return PairCounts(ordered, ties, inversions)
