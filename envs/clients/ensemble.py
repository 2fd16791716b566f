"""Clients that hear the same reply: a reply that moves them all counts, one that pleases some of them counts less.

    emotion = mean(e_1 .. e_n) - disagreement_weight * sd(e_1 .. e_n),  kept in [floor, cap]

with each member's own emotion and the population standard deviation, rounded to 1/1024 of a point, which binary numbers
add without error. The first member is the voice: what it says is said, and every member's history has it as the
client's words; the other played members only feel. The ensemble's written change is that emotion less the one before.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from envs.client_spec import ClientSpec, Ensemble
from envs.clients.client import Client
from envs.errors import InputError
from envs.trajectory import ClientTurn, Message, Stop

GRAIN = 1024  # parts of a point
LEAVES = (Stop.SUCCESS, Stop.FAILURE, Stop.GOODBYE)


class Member(Client, Protocol):
    """A client that can take another's words as its own."""

    def speak_as(self, text: str) -> None:
        """Take ``text`` as what was said last."""
        ...


class EnsembleClient:
    """Plays one card as several clients. ``members``: one for each member spec, in that order."""

    def __init__(self, spec: ClientSpec, members: Sequence[Member]) -> None:
        self.spec, self._members = spec, members
        self._rules = _rules_of(spec)
        self._emotion = 0.0
        self._turns = 0

    async def open(self) -> ClientTurn:
        """The voice's opening, at the emotion that the members' own give."""
        opened = await _all([member.open() for member in self._members])
        self._pass_on(opened)
        self._emotion = self.spec.applied(self._target(opened), 0.0)
        return ClientTurn(
            text=opened[0].text,
            emotion=self._emotion,
            written_change=0.0,
            change=0.0,
            appraisal=self._appraisal(opened),
        )

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """Let every member hear the last message of ``history``; the voice answers. Raises what a member raises."""
        heard = await _all([member.reply(history) for member in self._members])
        self._pass_on(heard)
        self._turns += 1
        before, written = self._emotion, self._target(heard) - self._emotion
        self._emotion = self.spec.applied(before, written)
        return ClientTurn(
            text=heard[0].text,
            emotion=self._emotion,
            written_change=written,
            change=self._emotion - before,
            appraisal=self._appraisal(heard),
            stop=self._stop(heard[0].stop),
        )

    def _pass_on(self, turns: Sequence[ClientTurn]) -> None:
        for member in self._members:
            member.speak_as(turns[0].text)

    def _target(self, turns: Sequence[ClientTurn]) -> float:
        mean, deviation = spread([turn.emotion for turn in turns])
        target = mean - self._rules.disagreement_weight * deviation
        return round(max(self.spec.floor, min(self.spec.cap, target)) * GRAIN) / GRAIN

    def _appraisal(self, turns: Sequence[ClientTurn]) -> dict[str, Any]:
        mean, deviation = spread([turn.emotion for turn in turns])
        members = [
            {"spec": spec.name, **turn.model_dump(mode="json")}
            for spec, turn in zip(self._rules.members, turns, strict=True)
        ]
        return {"mean": mean, "deviation": deviation, "members": members}

    def _stop(self, voice: Stop | None) -> Stop | None:
        """By the ensemble's emotion; else by the voice's leave, whatever it left for; else by the turns."""
        if self._emotion >= self.spec.success_at:
            return Stop.SUCCESS
        if self._emotion < self.spec.failure_below:
            return Stop.FAILURE
        if voice in LEAVES:
            return Stop.GOODBYE
        return Stop.TURN_LIMIT if self._turns >= self.spec.max_turns else None


async def _all(playing: Sequence[Coroutine[Any, Any, ClientTurn]]) -> list[ClientTurn]:
    """Every member's turn, once all have ended; then the first failure is raised, so that none plays on unheard."""
    turns: list[ClientTurn] = []
    for turn in await asyncio.gather(*playing, return_exceptions=True):
        if isinstance(turn, BaseException):
            raise turn
        turns.append(turn)
    return turns


def spread(emotions: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation of ``emotions`` (members,)."""
    mean = math.fsum(emotions) / len(emotions)
    return mean, math.sqrt(math.fsum((emotion - mean) ** 2 for emotion in emotions) / len(emotions))


def _rules_of(spec: ClientSpec) -> Ensemble:
    if spec.ensemble is None:
        raise InputError(f"client spec {spec.name} is of kind {spec.kind} and names no members")
    return spec.ensemble
