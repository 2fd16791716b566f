"""Appraisal: what a perceived reply means to this client, now.

Pure over (percept, mood, script, rules). Every push has a reason in words, so that a turn's record says why the feeling
moved; the sum is the push on valence that the affect model takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from envs.affect import Affect
from envs.cards import HARMS, STRATEGIES, Act, Script
from envs.client_spec import PHASES, Appraisal, Phase
from envs.perception.percept import Move, Percept

GOOD_STRATEGIES = tuple(act for act in STRATEGIES if act is not Act.OTHER)
TAKES_AGENCY = {Act.ORDERING, Act.LECTURING, Act.PERSUADING}


@dataclass(frozen=True)
class Mood:
    """What the client carries from turn to turn besides its affect. Counts are of turns or replies in a row."""

    disclosed: int = 0
    generic: int = 0
    questions: int = 0
    repetitions: int = 0
    flat: int = 0
    last_act: Act | None = None
    suspicious: bool = False


@dataclass
class Verdict:
    """The appraisal of one reply: ``cause`` names what spoiled it most, if anything did."""

    phase: Phase
    reasons: list[tuple[str, float]] = field(default_factory=list)
    cause: str | None = None
    met_need: bool = False
    primary: Act | None = None

    def add(self, why: str, push: float, cause: str | None = None) -> None:
        """Note a push with its reason; the cause of the strongest push downwards is what the client reacts to."""
        if push == 0 and cause is None:
            return
        if cause and (self.cause is None or push < min(p for _, p in self.reasons)):
            self.cause = cause
        self.reasons.append((why, round(push, 4)))

    @property
    def valence(self) -> float:
        """The whole push on valence, in [-1, 1]."""
        return max(-1.0, min(1.0, sum(push for _, push in self.reasons)))


def phase_of(disclosed: int, rules: Appraisal) -> Phase:
    """The phase of the talk by the number of facts that the client has disclosed."""
    reached: list[Phase] = [phase for phase in PHASES if disclosed >= rules.phase_facts[phase]]
    return reached[-1]


def appraise(percept: Percept, mood: Mood, script: Script, rules: Appraisal) -> Verdict:
    """Weigh a reply. Warmth is worked out first, then what spoils it, then the harms."""
    verdict = Verdict(phase=phase_of(mood.disclosed, rules))
    grounded = percept.uptake >= rules.limits.heard
    spoilt = _manner(percept, mood, rules, verdict)
    _harms(percept, script, rules, verdict)
    kept = _generic(percept, mood, grounded, spoilt, rules, verdict)
    kept *= spoilt * (rules.suspicion if mood.suspicious else 1.0)
    kept *= rules.temperaments[script.temperament].warmth
    harmed = any(act in HARMS for act in percept.acts)
    _strategies(percept, mood, script, rules, 0.0 if harmed else kept, verdict)
    return verdict


def push_of(verdict: Verdict, percept: Percept) -> Affect:
    """The push on all three dimensions: warmth calms, hurt stirs; being ordered about takes dominance away."""
    v = verdict.valence
    arousal = -0.5 * v if v > 0 else -0.6 * v
    given = 0.3 * v if v > 0 else 0.0
    taken = -0.4 if any(act in TAKES_AGENCY for act in percept.acts) else 0.0
    return Affect(valence=v, arousal=arousal, dominance=given + taken)


def _manner(percept: Percept, mood: Mood, rules: Appraisal, verdict: Verdict) -> float:
    """Pushes for how the reply is made; returns the share of warmth that survives it."""
    manner, limits = rules.manner, rules.limits
    if percept.words == 0:
        verdict.add("said nothing", manner.silence, "silence")
        return 0.0
    kept = 1.0
    if percept.meta:
        verdict.add("talked about scores or instructions instead of me", manner.meta, "meta")
        kept = 0.0
    if percept.gibberish >= limits.gibberish:
        verdict.add("made no sense", manner.gibberish, "gibberish")
        kept = 0.0
    elif percept.gibberish >= limits.garbled:
        verdict.add("came out garbled", manner.garbled, "garbled")
        kept *= 0.25
    if percept.echo >= limits.echo:
        verdict.add("handed my own words back", manner.echo, "echo")
        kept = 0.0
    if percept.repetition >= limits.repetition:
        again = manner.repetition + manner.each_further_repetition * mood.repetitions
        verdict.add("said what it had said before", again, "repetition")
        kept = 0.0
    elif percept.repetition >= limits.likeness:
        verdict.add("sounded much like before", manner.likeness)
        kept *= 0.5
    return kept * _size(percept, mood, rules, verdict)


def _size(percept: Percept, mood: Mood, rules: Appraisal, verdict: Verdict) -> float:
    manner, limits, kept = rules.manner, rules.limits, 1.0
    if percept.words > limits.wall_words:
        verdict.add("a wall of text", manner.wall, "wall")
        kept = 0.0
    elif percept.words > limits.long_words:
        verdict.add("went on too long", manner.long)
        kept *= 0.7
    elif percept.words < limits.short_words:
        kept *= 0.3
    if percept.questions >= limits.questions_at_once:
        verdict.add("asked too much at once", manner.many_questions, "interrogation")
    if _only_asks(percept) and mood.questions + 1 >= limits.questions_in_a_row:
        verdict.add("kept asking and never stayed with an answer", manner.interrogation, "interrogation")
        kept = 0.0
    if percept.flattery:
        verdict.add("praised without knowing me", manner.flattery, "flattery")
        kept *= 0.3
    return kept


def _generic(percept: Percept, mood: Mood, grounded: bool, spoilt: float, rules: Appraisal, verdict: Verdict) -> float:
    """The share of warmth left to a reply that could have been said to anyone."""
    if grounded:
        return 1.0
    steps = min(mood.generic, len(rules.generic.warmth) - 1)
    if spoilt > 0:
        push = rules.generic.push[steps]
        verdict.add("could have been said to anyone", push, "generic" if push < 0 else None)
    return rules.generic.warmth[steps]


def _harms(percept: Percept, script: Script, rules: Appraisal, verdict: Verdict) -> None:
    factor = rules.temperaments[script.temperament].harm
    found = sorted((act for act in percept.acts if act in HARMS), key=lambda act: rules.harms[act])
    for position, act in enumerate(found):
        push = rules.harms[act] * factor * (1.0 if position == 0 else rules.further_harm)
        verdict.add(f"was {act.value.replace('_', ' ')}", push, act.value)
    for sensitivity in script.hurts:
        if sensitivity.act in percept.acts:
            cause = sensitivity.act.value if sensitivity.act in HARMS else None
            verdict.add(f"{sensitivity.act.value.replace('_', ' ')} hurts: {sensitivity.because}", rules.hurts, cause)


def _strategies(percept: Percept, mood: Mood, script: Script, rules: Appraisal, kept: float, verdict: Verdict) -> None:
    pushes = {a: _strategy_push(a, percept, rules, verdict.phase) for a in percept.acts if a in GOOD_STRATEGIES}
    for act, push in pushes.items():
        if push < 0:
            verdict.add(f"{act.value.replace('_', ' ')} too early", push, act.value if act is Act.SUGGESTION else None)
    good = sorted((act for act, push in pushes.items() if push > 0), key=lambda act: -pushes[act])
    verdict.primary = good[0] if good else None
    if kept <= 0 or not good:
        return
    for position, act in enumerate(good[:2]):
        share = kept * (1.0 if position == 0 else rules.second_act)
        verdict.add(act.value.replace("_", " "), pushes[act] * share)
    if good[0] is mood.last_act:
        verdict.add("the same kind of reply as last time", rules.manner.same_act_again * kept)
    _particular(percept, script, rules, kept, verdict)


def _strategy_push(act: Act, percept: Percept, rules: Appraisal, phase: Phase) -> float:
    push = rules.strategies[act].at(phase)
    if act is Act.QUESTION and Move.OPEN_QUESTION in percept.moves:
        push += rules.open_question
    if act is Act.SUGGESTION and Move.ASKS_PERMISSION in percept.moves:
        push += rules.permission
    return push


def _particular(percept: Percept, script: Script, rules: Appraisal, kept: float, verdict: Verdict) -> None:
    """What lands better with this person than with others: their hidden need and what soothes them."""
    need = rules.needs[script.hidden_need]
    heard = {*percept.acts, *percept.moves}
    if PHASES.index(verdict.phase) >= PHASES.index(need.since) and heard & set(need.signals):
        verdict.met_need = kept > 0.5
        verdict.add("what I had been hoping for, without saying it", need.push * kept)
    for sensitivity in script.soothes:
        if sensitivity.act in percept.acts:
            act = sensitivity.act.value.replace("_", " ")
            verdict.add(f"{act} soothes: {sensitivity.because}", rules.soothes * kept)
            break


def _only_asks(percept: Percept) -> bool:
    return percept.questions > 0 and all(act in (Act.QUESTION, Act.OTHER) for act in percept.acts)


def mood_after(mood: Mood, percept: Percept, verdict: Verdict, change: float, opened: bool, rules: Appraisal) -> Mood:
    """What the client carries into the next turn. ``opened``: it disclosed a fact this time."""
    generic = percept.uptake < rules.limits.heard
    return Mood(
        disclosed=mood.disclosed + int(opened),
        generic=mood.generic + 1 if generic else max(0, mood.generic - 1),
        questions=mood.questions + 1 if _only_asks(percept) else 0,
        repetitions=mood.repetitions + int(percept.repetition >= rules.limits.repetition),
        flat=0 if change > 0 else mood.flat + 1,
        last_act=verdict.primary,
        suspicious=mood.suspicious or percept.meta,
    )
