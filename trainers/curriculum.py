"""Which card and which client each group of a step is played with: all in turn, by a fixed mixture, or by failures.

Kardia-R1 (arXiv 2512.01282) trains on the cards that fail at least half the time; RLVER (arXiv 2507.03112) finds that
moderate environments train better than the hardest. Cards are put into strata by hidden need, temperament and client
spec; a stratum's weight is its expected share of the groups. Unlike Kardia-R1, failure is observed while training goes
on, weights change smoothly with it, and no stratum falls under a floor.

Everything follows from seed, step and the dialogues of the steps before, so every rank, a resumed run and a
verification come to the same choice. Only sums, products and quotients are used, whose results are the same on every
machine; sums are exact (``fsum``), since ``sum`` rounds differently from one Python to another. No torch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.errors import InputError, RunError
from envs.hashing import derived_seed
from envs.receipts import read_log
from envs.trajectory import Trajectory
from trainers.curriculum_config import UNSTATED
from trainers.curriculum_config import Curriculum as Rules
from trainers.run_numbers import step_of

CURRICULUM = "curriculum"  # the key of a line of metrics.jsonl
LEAST = 0.01  # what the strata alike say is never more certain than this: the sum of their effects may leave [0, 1]
SAME = 9  # decimals: debts that differ less are equal, so that rounding decides nothing
Group = tuple[str, str]  # card id, name of the client spec


class Outcome(NamedTuple):
    """What a dialogue tells of its stratum: ``final_emotion`` is 0-100, None when it failed and so tells nothing."""

    card_id: str
    spec: str
    final_emotion: float | None

    @classmethod
    def of(cls, trajectory: Trajectory) -> Outcome:
        """The outcome of one dialogue."""
        return cls(trajectory.card_id, trajectory.spec, trajectory.final_emotion)


class Schedule(Protocol):
    """Says whom each group of a step talks with, and hears how it went."""

    def of(self, step: int) -> list[Group]:
        """The card and the client spec of each group of a step, (groups,)."""
        ...

    def learn(self, step: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Hear how the dialogues of a step ended, (rows,), group by group; returns what its line of metrics tells."""
        ...


class Rotation:
    """Every card once in a seeded order, then all again in another one; always with the same client."""

    def __init__(self, card_ids: Sequence[str], spec: str, seed: int, groups: int) -> None:
        self._card_ids, self._spec, self._seed, self._groups = card_ids, spec, seed, groups

    def of(self, step: int) -> list[Group]:
        """The card and the client spec of each group of a step, (groups,)."""
        drawn = len(self._card_ids)
        places = range(step * self._groups, (step + 1) * self._groups)
        return [(self._round(place // drawn)[place % drawn], self._spec) for place in places]

    def learn(self, step: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Nothing changes, and there is nothing to tell."""
        return {}

    def _round(self, number: int) -> list[str]:
        order = list(self._card_ids)
        random.Random(derived_seed(self._seed, "cards", number * len(order))).shuffle(order)
        return order


class Stratum(NamedTuple):
    """Cards of one hidden need and one temperament, played with one client spec."""

    need: str
    temperament: str
    spec: str

    @property
    def name(self) -> str:
        """The name in the record."""
        return "/".join(self)


class Seen(NamedTuple):
    """Dialogues of a stratum and how many of them failed its client, older ones counting less."""

    failures: float = 0.0
    dialogues: float = 0.0


class _Choice(NamedTuple):
    """The groups of a step, and what its line of metrics tells of the choice."""

    groups: list[Group]
    told: dict[str, Any]


Rates = Mapping[Stratum, float]
SeenBy = Mapping[Stratum, Seen]


class Curriculum:
    """Strata by weight. Each group goes to the stratum that is owed most, and there to the cards in turn.

    With each group every stratum is owed its weight more, and the chosen one a whole group less. With K strata none is
    ever owed more than H = 1 + 1/2 + ... + 1/K groups, so shares hold over any window of groups up to H, and a stratum
    whose weight is at least w is played at least once in any 1 + H / w groups.

    ``seed``: the run's; ``groups``: of a step. ``ahead``: how many steps are chosen before the outcomes of the present
    one are known (``trainer.max_staleness``). ``record``: the trajectories.jsonl from which a resumed run hears of the
    steps before; None: it starts at step 0.
    """

    def __init__(
        self,
        rules: Rules,
        cards: Iterable[PersonaCard],
        specs: Sequence[ClientSpec],
        *,
        seed: int,
        groups: int,
        ahead: int = 0,
        record: Path | None = None,
    ) -> None:
        self._rules, self._seed, self._groups, self._record = rules, seed, groups, record
        self._failure_below = {spec.name: spec.failure_below for spec in specs}
        self._cards = strata_of(cards, list(self._failure_below))
        self._stratum = {(card, stratum.spec): stratum for stratum, ids in self._cards.items() for card in ids}
        self._shares = normalised({stratum: float(len(ids)) for stratum, ids in self._cards.items()})
        self._owed, self._played = dict.fromkeys(self._cards, 0.0), dict.fromkeys(self._cards, 0)
        self._seen: dict[Stratum, Seen] = dict.fromkeys(self._cards, Seen())
        self._step = 0  # the steps before it have been heard of
        self._chosen: dict[int, _Choice] = {}  # those that have not
        for step in range(ahead + 1):
            self._choose(step)

    def of(self, step: int) -> list[Group]:
        """The card and the client spec of each group of a step, (groups,). Raises RunError when the record lacks one
        of the steps before."""
        if step and self._record:  # a resumed run's first step; one that begins at 0 has no record
            self._read_record(step, self._record)
        self._record = None
        if step not in self._chosen:
            raise RunError(
                f"curriculum: the record tells of {self._step} steps; what step {step} plays doesn't follow from it; "
                "start the run afresh"
            )
        return self._chosen[step].groups

    def learn(self, step: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Hear how the step's dialogues ended, group by group, and return what its line of metrics tells: for each
        stratum the groups that it was given, its weight and its failure rate, as estimated when it was chosen.

        Raises ValueError when the dialogues aren't those that were chosen.
        """
        if step != self._step:
            raise ValueError(f"after step {self._step - 1} comes step {self._step}, not {step}")
        groups, told = self._chosen[step]
        self._check(step, groups, outcomes)
        keep = 1 - 1 / self._rules.memory
        self._seen = {stratum: Seen(one.failures * keep, one.dialogues * keep) for stratum, one in self._seen.items()}
        for card, spec, emotion in outcomes:
            if emotion is not None:
                stratum, failed = self._stratum[card, spec], emotion < self._failure_below[spec]
                failures, dialogues = self._seen[stratum]
                self._seen[stratum] = Seen(failures + failed, dialogues + 1)
        self._choose(max(self._chosen) + 1)
        del self._chosen[step]
        self._step += 1
        return {CURRICULUM: told}

    def _choose(self, step: int) -> None:
        """Choose the groups of a step by what is known now."""
        rates = failure_rates(self._seen, self._rules.prior)
        weights = self._weights(rates)
        groups = [self._next(weights) for _ in range(self._groups)]
        given = Counter(self._stratum[group] for group in groups)
        told = {
            stratum.name: {"groups": given[stratum], "weight": weights[stratum], "failure_rate": rates[stratum]}
            for stratum in self._cards
        }
        self._chosen[step] = _Choice(groups, told)

    def _next(self, weights: Rates) -> Group:
        """The next group; the strata are owed, and were played, accordingly."""
        self._owed = {stratum: debt + weights[stratum] for stratum, debt in self._owed.items()}
        first = min(self._owed, key=lambda one: (-round(self._owed[one], SAME), self._lot(one, self._played[one])))
        cards = self._cards[first]
        turn, place = divmod(self._played[first], len(cards))
        card = sorted(cards, key=lambda one: derived_seed(self._seed, first.name, turn, one))[place]
        self._owed[first] -= 1
        self._played[first] += 1
        return card, first.spec

    def _lot(self, stratum: Stratum, played: int) -> int:
        """What decides between strata that are owed the same."""
        return derived_seed(self._seed, "lot", stratum.name, played)

    def _weights(self, rates: Rates) -> Rates:
        if self._rules.kind == "adaptive":
            return adaptive_weights(self._shares, rates, self._rules.prefer, self._rules.floor)
        return fixed_weights(self._shares, self._rules)

    def _check(self, step: int, chosen: Sequence[Group], outcomes: Sequence[Outcome]) -> None:
        size, left_over = divmod(len(outcomes), self._groups)
        if left_over or not size:
            raise ValueError(f"step {step}: {len(outcomes)} dialogues don't make {self._groups} groups")
        for row, (card, spec, _) in enumerate(outcomes):
            if (card, spec) != (wanted := chosen[row // size]):
                raise ValueError(
                    f"step {step}: dialogue {row + 1} is with {card} and {spec}, the curriculum chose "
                    f"{' and '.join(wanted)}"
                )

    def _read_record(self, step: int, record: Path) -> None:
        """Hear of the recorded steps before ``step``."""
        for number, lines in groupby(read_log(record), lambda line: step_of(line.trajectory.dialogue_id)):
            if number is None or number >= step:
                break
            try:
                self.learn(number, [Outcome.of(line.trajectory) for line in lines])
            except ValueError as error:
                raise RunError(f"{record}: {error}; the run can't go on from this record") from error


def strata_of(cards: Iterable[PersonaCard], specs: Sequence[str]) -> dict[Stratum, list[str]]:
    """The ids of the cards in each stratum, sorted, strata in the order of their names."""
    found: dict[Stratum, list[str]] = {}
    for card in cards:
        for spec in specs:
            stratum = Stratum(str(card.hidden_need or UNSTATED), str(card.temperament or UNSTATED), spec)
            found.setdefault(stratum, []).append(card.id)
    return {stratum: sorted(found[stratum]) for stratum in sorted(found)}


def failure_rates(seen: SeenBy, prior: float) -> Rates:
    """The estimated share of a stratum's dialogues that fail, in (0, 1).

    A stratum has few dialogues, so what it shares with others counts too. With F failures in D dialogues: over all,
    r = (F + prior/2) / (D + prior); for each need, temperament and spec, r_v = (F_v + prior r) / (D_v + prior); a
    stratum's expectation e = r + the sum of r_v - r over its three values, kept within [0.01, 0.99]; its estimate is
    (F_s + prior e) / (D_s + prior). Where all strata share a value, it tells nothing and is left out.
    """
    overall = _estimate(seen.values(), prior, 0.5)
    effects: list[dict[str, float]] = []
    for axis in range(len(Stratum._fields)):
        values = {stratum[axis] for stratum in seen}
        effects.append({value: 0.0 for value in values})
        if len(values) > 1:
            for value in values:
                alike = [one for stratum, one in seen.items() if stratum[axis] == value]
                effects[axis][value] = _estimate(alike, prior, overall) - overall
    rates = {}
    for stratum, one in seen.items():
        expected = fsum([overall, *(effect[value] for effect, value in zip(effects, stratum, strict=True))])
        rates[stratum] = _estimate([one], prior, min(1 - LEAST, max(LEAST, expected)))
    return rates


def _estimate(seen: Iterable[Seen], prior: float, expected: float) -> float:
    """The mean of a Beta posterior whose prior has the mean ``expected`` and counts as ``prior`` dialogues."""
    seen = list(seen)
    return (fsum(one.failures for one in seen) + prior * expected) / (fsum(one.dialogues for one in seen) + prior)


def adaptive_weights(shares: Rates, rates: Rates, prefer: str, floor: float) -> Rates:
    """floor x share + (1 - floor) x share x g / sum of share x g, with g = p ("hard") or 4 p (1 - p) ("moderate"),
    p a stratum's failure rate and share its share of the groups under rotation. Weights sum to 1."""
    worth = {stratum: rate if prefer == "hard" else 4 * rate * (1 - rate) for stratum, rate in rates.items()}
    free = normalised({stratum: share * worth[stratum] for stratum, share in shares.items()})
    return {stratum: floor * share + (1 - floor) * free[stratum] for stratum, share in shares.items()}


def fixed_weights(shares: Rates, rules: Rules) -> Rates:
    """Share x the mixture's factors for need, temperament and spec, over their sum. Weights sum to 1."""
    need, temperament, spec = ({str(key): factor for key, factor in axis.items()} for axis in _axes(rules))
    return normalised(
        {
            one: share * need.get(one.need, 1.0) * temperament.get(one.temperament, 1.0) * spec.get(one.spec, 1.0)
            for one, share in shares.items()
        }
    )


def _axes(rules: Rules) -> tuple[Mapping[Any, float], ...]:
    return rules.mixture.need, rules.mixture.temperament, rules.mixture.spec


def normalised(worth: Rates) -> Rates:
    """Each over the sum of all."""
    whole = fsum(worth.values())
    return {stratum: one / whole for stratum, one in worth.items()}


def check_mixture(rules: Rules, cards: Iterable[PersonaCard], specs: Sequence[str]) -> None:
    """Raises InputError for a factor on what no training card or client has."""
    strata = strata_of(cards, specs)
    for axis, (name, factors) in enumerate(zip(Stratum._fields, _axes(rules), strict=True)):
        known = sorted({stratum[axis] for stratum in strata})
        if unknown := sorted({str(key) for key in factors} - set(known)):
            raise InputError(
                f"curriculum.mixture.{name}.{unknown[0]}: no training {'client' if name == 'spec' else 'card'} has it; "
                f"there is {', '.join(known)}"
            )


def recorded_curriculum(
    rules: Rules,
    cards: Iterable[PersonaCard],
    specs: Iterable[ClientSpec],
    line: Mapping[str, Any],
    *,
    seed: int,
    groups: int,
    ahead: int,
) -> Curriculum:
    """The curriculum of a recorded run, before its first step. ``line``: its first line of metrics.jsonl, which names
    the training clients among ``specs``. Raises ValueError when it names none, or not as many as ``rules``."""
    named = {name.rpartition("/")[2] for name in line.get(CURRICULUM) or ()}
    players = [spec for spec in specs if spec.name in named]
    if not named or len(players) != len(named) or len(players) != 1 + len(rules.clients):
        raise ValueError(
            f"curriculum: names {len(named)} client specs, of which specs/ holds {len(players)}; the config names "
            f"{1 + len(rules.clients)}"
        )
    return Curriculum(rules, cards, players, seed=seed, groups=groups, ahead=ahead)
