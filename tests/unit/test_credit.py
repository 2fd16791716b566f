from __future__ import annotations

import pytest

from trainers.credit import GroupRelative


def test_a_total_that_could_not_be_measured_is_left_out_of_its_group():
    credit = GroupRelative(4, scale="none").assign([None, 1, 0, 1])
    assert credit.advantages == pytest.approx([0, 1 / 3, -2 / 3, 1 / 3])


def test_advantages_are_divided_by_the_standard_deviation_of_the_group():
    # Mean 0.5; deviation sqrt(4 * 0.25 / 3) = 0.57735; 0.5 / (0.57735 + 0.0001) = 0.86588.
    credit = GroupRelative(4).assign([1, 0, 1, 0])
    assert credit.advantages == pytest.approx([0.86588, -0.86588, 0.86588, -0.86588], abs=1e-5)


def test_each_group_is_measured_against_itself():
    credit = GroupRelative(2, scale="none").assign([0.2, 0.4, 0.9, 0.7])
    assert credit.advantages == pytest.approx([-0.1, 0.1, 0.1, -0.1])
    assert (credit.groups, credit.groups_without_variance) == (2, 0)


def test_a_group_of_equal_totals_has_no_signal_and_is_counted():
    credit = GroupRelative(3).assign([0.1, 0.1, 0.1, 0.0, 0.5, 1.0])
    assert credit.advantages[:3] == (0, 0, 0)
    assert credit.advantages[3] == pytest.approx(-credit.advantages[5]) and credit.advantages[5] > 0.99
    assert (credit.groups, credit.groups_without_variance) == (2, 1)


@pytest.mark.parametrize("totals", [[None, None], [None, 0.7]])
def test_a_group_with_fewer_than_two_totals_has_no_signal(totals):
    credit = GroupRelative(2).assign(totals)
    assert credit.advantages == (0, 0) and credit.groups_without_variance == 1


def test_a_batch_that_is_no_whole_number_of_groups_is_refused():
    with pytest.raises(ValueError, match="groups of 4"):
        GroupRelative(4).assign([0.1] * 6)
