"""Dead signals: how often a reward tells the dialogues of a group apart in nothing, and what to do about it.

A group-relative advantage needs differences within the group. Rubrics in whole numbers often give the same mark to
every dialogue of a group; such a group teaches nothing, however well the judge ranks people. Where the config allows,
a reward that is dead too often is compared pairwise within the group instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from envs.trajectory import Record, Score
from rewards.combine import in_groups, is_flat

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class SignalCount(Record):
    """One reward over a number of groups. ``groups``: those with two measured rows or more; ``flat``: those of them in
    which all measured values are equal. ``unmeasured``: rows without a value, out of ``rows``."""

    rows: Count
    unmeasured: Count
    groups: Count
    flat: Count

    @property
    def none_rate(self) -> float | None:
        """Share of rows that could not be measured; None over no rows."""
        return self.unmeasured / self.rows if self.rows else None

    @property
    def dead_rate(self) -> float | None:
        """Share of measured groups without a difference; None over no group."""
        return self.flat / self.groups if self.groups else None


class SwitchRule(Record):
    """When a reward is compared pairwise: it is named in ``pairwise``, and over ``window`` steps with at least
    ``min_groups`` measured groups more than ``max_dead_rate`` of them were flat."""

    window: Annotated[int, Field(ge=1)] = 10
    max_dead_rate: Share = 0.5
    min_groups: Annotated[int, Field(ge=1)] = 20
    pairwise: tuple[str, ...] = ()


class Duel(Record):
    """A pairwise judgment: ``first`` and ``second`` are places in the group, in the order in which they were shown.

    ``first_wins``: 1 where the first is better, 0 where the second is, 0.5 for a tie; None where nobody could say.
    """

    first: Count
    second: Count
    first_wins: Share | None


def count_signals(rows: Sequence[Sequence[Score]], group_size: int) -> dict[str, SignalCount]:
    """The counts of one step, by reward. Rows (B,) stand group by group, each with the same rewards in one order.

    Raises ValueError when B is no multiple of the group size, or the rewards differ.
    """
    names = [score.name for score in rows[0]] if rows else []
    if any([score.name for score in row] != names for row in rows):
        raise ValueError(f"every row needs the same scores in the same order: {', '.join(names)}")
    counts = {}
    for place, name in enumerate(names):
        values = [row[place].value for row in rows]
        groups = [group for group in in_groups(values, group_size) if sum(v is not None for v in group) > 1]
        counts[name] = SignalCount(
            rows=len(values),
            unmeasured=sum(value is None for value in values),
            groups=len(groups),
            flat=sum(map(is_flat, groups)),
        )
    return counts


def over(history: Sequence[Mapping[str, SignalCount]]) -> dict[str, SignalCount]:
    """The counts of several steps added up, by reward."""
    names = dict.fromkeys(name for step in history for name in step)
    found = {name: [step[name] for step in history if name in step] for name in names}
    return {
        name: SignalCount(
            rows=sum(count.rows for count in counts),
            unmeasured=sum(count.unmeasured for count in counts),
            groups=sum(count.groups for count in counts),
            flat=sum(count.flat for count in counts),
        )
        for name, counts in found.items()
    }


def signal_metrics(history: Sequence[Mapping[str, SignalCount]], rule: SwitchRule) -> dict[str, dict[str, Any]]:
    """What a step's line in the log says of each reward: the last step's counts, and rates of it and the window."""
    recent = over(history[-rule.window :])
    return {
        name: count.model_dump()
        | {"none_rate": count.none_rate, "dead_rate": count.dead_rate, "dead_rate_window": recent[name].dead_rate}
        for name, count in (history[-1] if history else {}).items()
    }


def switched(history: Sequence[Mapping[str, SignalCount]], rule: SwitchRule) -> frozenset[str]:
    """The rewards that are compared pairwise after the steps in ``history``, oldest first.

    A reward that was switched stays so: its later counts are those of the pairwise scores, and would switch it back.
    The answer follows from the recorded counts alone, so a resumed or verified run comes to the same.
    """
    found: set[str] = set()
    allowed = [{name: count for name, count in step.items() if name in rule.pairwise} for step in history]
    for end in range(rule.window, len(history) + 1 if rule.pairwise else 0):
        for name, count in over(allowed[end - rule.window : end]).items():
            rate = count.dead_rate
            if count.groups >= rule.min_groups and rate is not None and rate > rule.max_dead_rate:
                found.add(name)
    return frozenset(found)


def round_robin(members: int) -> list[tuple[int, int]]:
    """Who is shown against whom: every pair of the group in both orders, since judges favour a place (2306.05685)."""
    return list(permutations(range(members), 2))


def win_shares(members: int, duels: Sequence[Duel]) -> list[float | None]:
    """The share of the group's others that each member beats, (members,), ties counting half.

    Wins in a whole round robin order the members as Bradley-Terry's strengths would (they are its sufficient
    statistic), and stay in [0, 1] for one that beats all, where a strength has no limit. A pair counts when it was
    judged in both orders; a member who lacks a pair, or has no other, gets None. Raises ValueError for a place outside
    the group or a member against itself.
    """
    results: dict[tuple[int, int], list[float]] = {}
    for duel in duels:
        if duel.first == duel.second or not {duel.first, duel.second} <= set(range(members)):
            raise ValueError(f"{duel.first} against {duel.second} is no pair of a group of {members}")
        if duel.first_wins is not None:
            results.setdefault((duel.first, duel.second), []).append(duel.first_wins)
    shares: list[float | None] = []
    for member in range(members):
        beaten = [_pair(results, member, other) for other in range(members) if other != member]
        known = [share for share in beaten if share is not None]
        shares.append(fmean(known) if known and len(known) == len(beaten) else None)
    return shares


def _pair(results: Mapping[tuple[int, int], Sequence[float]], member: int, other: int) -> float | None:
    """How often ``member`` beats ``other``, each order counting half; None where an order was not judged."""
    shown_first, shown_second = results.get((member, other)), results.get((other, member))
    if not shown_first or not shown_second:
        return None
    return (fmean(shown_first) + 1 - fmean(shown_second)) / 2
