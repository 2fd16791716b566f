"""The trend test: exact chances, worked by hand and by counting every order, and careful where values tie."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.trend import rise_chance


def test_a_steady_rise_of_four_has_one_order_of_24() -> None:
    assert rise_chance([1, 2, 3, 4]) == pytest.approx(1 / 24)
    assert rise_chance([1, 3, 2, 4]) == pytest.approx(4 / 24)  # one falling pair: itself, and the three other orders
    assert rise_chance([4, 3, 2, 1]) == 1


def test_nothing_and_a_single_value_are_no_rise() -> None:
    assert rise_chance([]) == rise_chance([0.3]) == 1


def test_the_chance_is_the_share_of_orders_that_rise_as_steadily() -> None:
    def falls(order: tuple[int, ...]) -> int:
        return sum(order[i] > order[j] for j in range(5) for i in range(j))

    orders = list(permutations(range(5)))
    for order in orders:
        as_steady = sum(falls(other) <= falls(order) for other in orders) / len(orders)
        assert rise_chance(order) == pytest.approx(as_steady)


@pytest.mark.parametrize("values", [(0, 0, 1, 1, 2, 2), (0, 0, 0, 1, 1, 1), (0, 1, 1, 1, 1, 2), (0, 1, 2, 3, 4, 4)])
@pytest.mark.parametrize("level", [0.01, 0.05])
def test_with_ties_an_alarm_by_chance_stays_as_rare_as_was_said(values: tuple[int, ...], level: float) -> None:
    orders = list(permutations(values))
    assert sum(rise_chance(order) <= level for order in orders) / len(orders) <= level


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_only_the_order_of_the_values_counts(values: list[float]) -> None:
    ranks = [sorted(set(values)).index(value) for value in values]
    assert rise_chance(values) == rise_chance(ranks) == rise_chance([rank * 1000 - 3 for rank in ranks])
    assert rise_chance(values) + rise_chance(values[::-1]) >= 1 - 1e-9
