"""The watch over a run: alarms when the reward is being gamed, the language drifts, or a judge is not what it was.

It is fed what the run records anyway: each step's line of metrics.jsonl, the held-out scores of each evaluation, and
the canaries' scores. The rules are data (``trainers.watch_rules``). Alarms follow from what was fed alone, so a resumed
run feeds the recorded lines again and goes on as if it had not stopped. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

from envs.errors import RunError
from envs.trajectory import Record
from trainers.language import repeated_sentences
from trainers.trend import rise_chance
from trainers.watch_rules import Bound, Canaries, Divergence, Unmeasured, WatchRules


class Move(Record):
    """What moved, from what to what; None where there was, or is, no measurement."""

    what: str
    before: float | None
    after: float | None


Rule = Divergence | Bound | Canaries | Unmeasured
Kind = Literal["divergence", "bound", "canary", "unmeasured"]


class Alarm(Record):
    """A rule that has begun to hold at ``step``. ``since``: the step at which what it tells of began."""

    rule: Kind
    step: int
    since: int
    moved: tuple[Move, ...]
    why: str
    remedy: str
    halt: bool

    @property
    def text(self) -> str:
        """One sentence: what moved, from what to what, since when, why that is an alarm, and what to do."""
        moves = ", ".join(f"{move.what} from {_shown(move.before)} to {_shown(move.after)}" for move in self.moved)
        return f"step {self.step}: {moves}, since step {self.since} ({self.why}); {self.remedy}"


class _Reading(NamedTuple):
    """An evaluation: the trained reward's mean since the one before, and a held-out score; both in [0, 1]."""

    step: int
    trained: float
    held_out: float


class Watch:
    """Feed it in the order of the run; each call returns the alarms that have begun. A rule that holds on alarms once,
    and again only when it has let go in between."""

    def __init__(self, rules: WatchRules) -> None:
        self._rules = rules
        self._holding: set[tuple[str, ...]] = set()
        self._starts: dict[str, list[float]] = {}  # metric -> its first measured values
        self._streaks: dict[int, list[int]] = {}  # place of a bound -> the steps on end at which it was passed
        self._last: dict[str, tuple[int, float]] = {}  # what is watched -> step and value of its last measurement
        self._missed: dict[str, list[int]] = {}  # what is watched -> the steps on end at which it wasn't measured
        self._trained: list[float] = []  # the trained reward on the steps since the last evaluation
        self._readings: dict[str, list[_Reading]] = {}
        self._diverging: dict[str, int] = {}  # held-out score -> evaluations on end at which it diverged
        # Of each reward and canary: the step at which its score was last the first one, and that score.
        self._references: dict[tuple[str, str], tuple[int, float]] = {}

    def step(self, line: Mapping[str, Any]) -> list[Alarm]:
        """A line of metrics.jsonl, with ``step``. A metric that is missing, None or not finite was not measured."""
        step, alarms = int(line["step"]), []
        trained = _number(line.get(self._rules.divergence.trained))
        if trained is not None:
            self._trained.append(trained)
        values = {bound.metric: _number(line.get(bound.metric)) for bound in self._rules.bounds}
        for metric, value in values.items():
            starts = self._starts.setdefault(metric, [])
            if value is not None and len(starts) < self._rules.start_steps:
                starts.append(value)
        for place, bound in enumerate(self._rules.bounds):
            alarms += self._bound(place, bound, values[bound.metric], step)
        for metric, value in {self._rules.divergence.trained: trained, **values}.items():
            alarms += self._measured(metric, value, step)
        return alarms

    def evaluation(self, step: int, held_out: Mapping[str, float | None]) -> list[Alarm]:
        """Held-out scores in [0, 1] by name, such as a judge's or a client's that never train; measured after ``step``.

        They are compared with the mean of the trained reward over the steps since the evaluation before. Give what
        could not be measured as None: a name that is left out is not missed.
        """
        alarms: list[Alarm] = []
        trained = fmean(self._trained) if self._trained else None
        self._trained = []
        for name, value in held_out.items():
            score = _number(value)
            if trained is not None and score is not None:
                self._readings.setdefault(name, []).append(_Reading(step, trained, score))
                alarms += self._divergence(name, step)
            alarms += self._measured(f"held-out {name}", score, step)
        return alarms

    def canaries(self, step: int, scores: Mapping[str, Mapping[str, float | None]]) -> list[Alarm]:
        """The canaries' scores at ``step``, by reward, then by canary. What was measured first is the reference."""
        rule, alarms = self._rules.canaries, []
        for reward, by_canary in scores.items():
            tolerance = rule.tolerances.get(reward, rule.tolerance)
            for canary, value in by_canary.items():
                what, score = f"{reward} of canary {canary}", _number(value)
                alarms += self._measured(what, score, step)
                if score is None:
                    continue
                unmoved, reference = self._references.setdefault((reward, canary), (step, score))
                moved = abs(score - reference) > tolerance
                self._references[reward, canary] = (unmoved if moved else step, reference)
                if self._begins(("canary", what), moved):
                    move = Move(what=what, before=reference, after=score)
                    why = f"a fixed transcript's score may differ by {tolerance:g}"
                    alarms.append(_alarm("canary", step, unmoved, (move,), why, rule))
        return alarms

    def _divergence(self, name: str, step: int) -> list[Alarm]:
        rule, readings = self._rules.divergence, self._readings[name]
        found = [self._diverged(name, readings[-count:]) for count in rule.evaluations if len(readings) >= count]
        first = next((finding for finding in found if finding), None)
        self._diverging[name] = self._diverging.get(name, 0) + 1 if first else 0
        if not self._begins(("divergence", name), self._diverging[name] >= rule.times) or first is None:
            return []
        since, moves, why = first
        return [_alarm("divergence", step, since, moves, why, rule)]

    def _diverged(self, name: str, readings: Sequence[_Reading]) -> tuple[int, tuple[Move, ...], str] | None:
        """Since when, what moved and why, when the two series of ``readings`` come apart; None when they don't."""
        rule = self._rules.divergence
        trained = [reading.trained for reading in readings]
        held_out = [reading.held_out for reading in readings]
        (low, high), (before, after) = _ends(trained), _ends(held_out)
        if high - low < rule.least_rise or (rises := rise_chance(trained)) > rule.level:
            return None
        lag = [rule.keeps_up * gain - kept for gain, kept in zip(trained, held_out, strict=True)]
        if (lags := rise_chance(lag)) > rule.level:
            return None
        moves = (
            Move(what=f"trained {rule.trained}", before=low, after=high),
            Move(what=f"held-out {name}", before=before, after=after),
        )
        why = (
            f"over {len(readings)} evaluations a rise of the first by chance has p = {rises:.2g}, and a lag of the "
            f"second behind {rule.keeps_up:g} of it p = {lags:.2g}"
        )
        return readings[0].step, moves, why

    def _bound(self, place: int, bound: Bound, value: float | None, step: int) -> list[Alarm]:
        start = self._start(bound)
        if value is None or start is None:
            return []
        limit = (bound.above if bound.above is not None else bound.below or 0.0) * start
        passed = value > limit if bound.above is not None else value < limit
        streak = [*self._streaks.get(place, []), step] if passed else []
        self._streaks[place] = streak
        if not self._begins(("bound", str(place)), len(streak) >= bound.steps):
            return []
        before = median(self._starts[bound.metric])
        side = "above" if bound.above is not None else "below"
        times = f", {limit / start:g} times the run's start" if bound.times_start else ""
        why = f"{side} {limit:.3g}{times} on {len(streak)} steps on end"
        move = Move(what=bound.metric, before=before, after=value)
        return [_alarm("bound", step, streak[0], (move,), why, bound)]

    def _start(self, bound: Bound) -> float | None:
        """What the bound counts in: 1, or the metric at the run's start; None while that isn't known, or is 0."""
        if not bound.times_start:
            return 1.0
        starts = self._starts[bound.metric]
        known = len(starts) == self._rules.start_steps and median(starts) > 0
        return median(starts) if known else None

    def _measured(self, what: str, value: float | None, step: int) -> list[Alarm]:
        """Alarm when ``what`` has not been measured for too long."""
        rule = self._rules.unmeasured
        if value is not None:
            self._last[what] = (step, value)
        missed = [*self._missed.get(what, []), step] if value is None else []
        self._missed[what] = missed
        if not self._begins(("unmeasured", what), len(missed) >= rule.times):
            return []
        move = Move(what=what, before=self._last[what][1] if what in self._last else None, after=None)
        why = f"not measured {len(missed)} times on end"
        return [_alarm("unmeasured", step, missed[0], (move,), why, rule)]

    def _begins(self, key: tuple[str, ...], holds: bool) -> bool:
        """Whether a rule holds that did not hold before."""
        begins = holds and key not in self._holding
        (self._holding.add if holds else self._holding.discard)(key)
        return begins


def halt_on(alarms: Iterable[Alarm]) -> None:
    """Raise RunError with the text of every alarm that halts the run, if there is one."""
    if texts := [alarm.text for alarm in alarms if alarm.halt]:
        raise RunError("\n".join(texts))


def repetition(dialogues: Iterable[Sequence[str]]) -> float | None:
    """Share of sentences that were said before in the same dialogue, over a step's dialogues, each its replies."""
    counts = [repeated_sentences(replies) for replies in dialogues]
    sentences = sum(count for _, count in counts)
    return sum(repeated for repeated, _ in counts) / sentences if sentences else None


def _alarm(kind: Kind, step: int, since: int, moved: tuple[Move, ...], why: str, rule: Rule) -> Alarm:
    return Alarm(rule=kind, step=step, since=since, moved=moved, why=why, remedy=rule.remedy, halt=rule.halt)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the first third and of the last."""
    third = max(1, len(values) // 3)
    return fmean(values[:third]), fmean(values[-third:])


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
