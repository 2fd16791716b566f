"""The part of a run's configuration that says which cards and clients a step's groups are played with. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from envs.cards import HiddenNeed, Temperament
from trainers.client_config import Count, Positive, Section, Share

UNSTATED = "unstated"  # the need or temperament of a card that tells none


class Mixture(Section):
    """How much more often than the others cards and clients of a kind are played; what isn't named counts 1."""

    need: dict[HiddenNeed | Literal["unstated"], Positive] = Field(
        default={}, description="fixed: factors by hidden need; `unstated`: cards without one."
    )
    temperament: dict[Temperament | Literal["unstated"], Positive] = Field(
        default={}, description="fixed: factors by temperament."
    )
    spec: dict[str, Positive] = Field(default={}, description="fixed: factors by the name of the client spec.")


class Curriculum(Section):
    """Which cards and clients a step's groups are played with."""

    kind: Literal["rotation", "fixed", "adaptive"] = Field(
        default="rotation",
        description="rotation: every card in turn; fixed: by the mixture; adaptive: by observed failures.",
    )
    clients: list[str] = Field(
        default=[], description="Client specs beside client.spec, each a name in configs/clients or a path."
    )
    mixture: Mixture = Field(default=Mixture(), description="Factors of a fixed curriculum.")
    prefer: Literal["moderate", "hard"] = Field(
        default="moderate",
        description="adaptive: moderate: what fails half the time is played most; hard: what fails always.",
    )
    floor: Share = Field(
        default=0.25, description="adaptive: the least share of its groups under rotation that every stratum keeps."
    )
    memory: Count = Field(
        default=20, description="adaptive: steps; with each, older dialogues count a share of 1/memory less."
    )
    prior: Positive = Field(
        default=8.0, description="adaptive: dialogues that the estimate from like strata counts as much as."
    )


def curriculum_conflicts(curriculum: Curriculum) -> list[str]:
    """What can't be combined, a line each, with the key first."""
    kind, problems, default = curriculum.kind, [], Curriculum()
    if curriculum.clients and kind == "rotation":
        problems.append(
            "curriculum.clients: rotation plays one client; set curriculum.kind to adaptive, or to fixed, which plays "
            "each equally often where there is no mixture"
        )
    if kind != "fixed" and curriculum.mixture != default.mixture:
        problems.append(f"curriculum.mixture: says nothing to {kind}; remove it, or set curriculum.kind to fixed")
    for name in ("prefer", "floor", "memory", "prior"):
        if kind != "adaptive" and getattr(curriculum, name) != getattr(default, name):
            problems.append(f"curriculum.{name}: says nothing to {kind}; remove it, or set curriculum.kind to adaptive")
    return problems
