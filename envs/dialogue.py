"""Dialogues between a supporter and a simulated client, many at once.

A dialogue that fails is data: it ends with ``Stop.ERROR`` and a reason, keeps what was said until then, and never takes
another dialogue or its row with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.clients.client import Client
from envs.trajectory import ClientTurn, Generation, Message, Stop, Trajectory, Turn


class Supporter(Protocol):
    """Whoever answers the client: the policy, a script, or a person. One object plays one dialogue."""

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """Answer the last message, which is the client's. Raises when no reply could be made."""
        ...


@dataclass(frozen=True)
class DialoguePlan:
    """One dialogue to run: who is played, by which rules and seed, and the two who talk."""

    dialogue_id: str
    card: PersonaCard
    spec: ClientSpec
    seed: int
    client: Client
    supporter: Supporter


async def run_dialogue(plan: DialoguePlan, deadline_seconds: float | None = None) -> Trajectory:
    """Talk until the client stops, the turn limit or the deadline. Never raises but for cancellation."""
    record = _Record(plan)
    deadline = asyncio.timeout(deadline_seconds)
    try:
        async with deadline:
            await _talk(plan, record)
    except Exception as error:  # a failed dialogue is data, whatever made it fail
        if deadline.expired():  # a timeout of the supporter's own is not the deadline
            return record.failed(f"not finished within {deadline_seconds:g} s")
        return record.failed(f"{type(error).__name__}: {error}")
    return record.finished()


async def run_dialogues(
    plans: Sequence[DialoguePlan],
    concurrency: int,
    deadline_seconds: float | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Run all plans with at most ``concurrency`` in flight. The result has one trajectory per plan, in their order."""
    slots = asyncio.Semaphore(concurrency)

    async def one(plan: DialoguePlan) -> Trajectory:
        async with slots:
            trajectory = await run_dialogue(plan, deadline_seconds)
        if on_done:
            on_done(trajectory)
        return trajectory

    return list(await asyncio.gather(*(one(plan) for plan in plans)))


async def _talk(plan: DialoguePlan, record: _Record) -> None:
    record.opening = await plan.client.open()
    messages = [Message(speaker="client", text=record.opening.text)]
    while True:
        generation = await plan.supporter.reply(messages)
        messages.append(Message(speaker="supporter", text=generation.text))
        answer = await plan.client.reply(messages)
        messages.append(Message(speaker="client", text=answer.text))
        record.turns.append(Turn(supporter=generation, client=answer))
        if answer.stop or len(record.turns) >= plan.spec.max_turns:
            return


class _Record:
    """What has been said so far; becomes a trajectory however the dialogue ends."""

    def __init__(self, plan: DialoguePlan) -> None:
        self.plan = plan
        self.opening: ClientTurn | None = None
        self.turns: list[Turn] = []

    def finished(self) -> Trajectory:
        return self._trajectory(self.turns[-1].client.stop or Stop.TURN_LIMIT, None)

    def failed(self, reason: str) -> Trajectory:
        return self._trajectory(Stop.ERROR, reason)

    def _trajectory(self, stop: Stop, error: str | None) -> Trajectory:
        plan = self.plan
        return Trajectory(
            dialogue_id=plan.dialogue_id,
            card_id=plan.card.id,
            card_hash=plan.card.hash,
            spec=plan.spec.name,
            spec_hash=plan.spec.hash,
            seed=plan.seed,
            opening=self.opening,
            turns=tuple(self.turns),
            stop=stop,
            error=error,
        )
