"""How a feeling moves: PELD's personality-affected transition in valence, arousal and dominance, with inertia.

PELD gives a person's susceptibility P from the Big Five (each in [0, 1]) and lets affect move by e' = e + delta * P. We
deviate in two ways: the delta comes from the appraisal and not from a learned model, and a share ``inertia`` of it is
held back (after EmotionIC). All values of affect lie in [-1, 1].
"""

from __future__ import annotations

from typing import NamedTuple

from envs.cards import BigFive


class Affect(NamedTuple):
    """A point (or a push) in valence, arousal, dominance."""

    valence: float
    arousal: float
    dominance: float


def susceptibility(traits: BigFive) -> Affect:
    """PELD's P: how strongly each dimension of this person answers a push."""
    o, c, e, a, n = (
        traits.openness,
        traits.conscientiousness,
        traits.extraversion,
        traits.agreeableness,
        traits.neuroticism,
    )
    return Affect(
        valence=0.21 * e + 0.59 * a + 0.19 * n,
        arousal=0.15 * o + 0.30 * a - 0.57 * n,
        dominance=0.25 * o + 0.17 * c + 0.60 * e - 0.32 * a,
    )


def step(traits: BigFive, inertia: float, push: Affect) -> Affect:
    """The move of affect that ``push`` brings: (1 - inertia) * push * P, each dimension by itself."""
    person = susceptibility(traits)
    kept = 1.0 - inertia
    return Affect(*(kept * p * s for p, s in zip(push, person, strict=True)))


def moved(affect: Affect, by: Affect) -> Affect:
    """``affect`` after a move, kept in [-1, 1]."""
    return Affect(*(max(-1.0, min(1.0, a + b)) for a, b in zip(affect, by, strict=True)))


def from_emotion(emotion: float) -> Affect:
    """The affect that a talk starts from: valence as the emotion score (0-100) says, the rest neutral."""
    return Affect(valence=emotion / 50.0 - 1.0, arousal=0.0, dominance=0.0)
