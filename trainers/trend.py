"""Is a short series rising? The Mann-Kendall test, exact, and nothing assumed of the noise but independence.

Every pair of values votes, up or down. Without a trend every order of the values is equally likely, so the chance of as
many up-votes follows from counting orders (Mann 1945, Kendall 1938). No spread has to be estimated from a handful of
values, and one wild value can't carry the verdict. A tie votes down, which is the careful side: however ties were
broken, there would be no more falling pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from math import factorial


def rise_chance(values: Sequence[float]) -> float:
    """One-sided p: the chance of a rise at least as steady as that of ``values`` (n,), oldest first, by noise alone."""
    falls = sum(later <= earlier for earlier, later in combinations(values, 2))
    return sum(_orders_by_falls(len(values))[: falls + 1]) / factorial(len(values))


@cache
def _orders_by_falls(count: int) -> tuple[int, ...]:
    """How many orders of ``count`` distinct values have 0, 1, 2, ... falling pairs."""
    orders = [1]
    for size in range(2, count + 1):
        longer = [0] * (len(orders) + size - 1)
        for falls, number in enumerate(orders):
            for new in range(size):
                longer[falls + new] += number
        orders = longer
    return tuple(orders)
