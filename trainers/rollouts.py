"""One step's dialogues: plan them, play them, and, once they are written down, score them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from envs.cards import Language, PersonaCard
from envs.client_spec import ClientSpec
from envs.dialogue import DialoguePlan, run_dialogue
from envs.errors import RunError
from envs.hashing import derived_seed
from envs.trajectory import Score, Stop, Trajectory
from trainers.chat_template import ChatTemplate
from trainers.curriculum import Group, Outcome
from trainers.evaluation import MakeClient
from trainers.policy import PolicySupporter, Sampling
from trainers.policy_server import PolicyServer
from trainers.samples import Sample, blank_sample, build_sample
from trainers.scoring import score_row
from trainers.usage import DialogueUsage, usage_of
from trainers.watch import repetition

LONGEST_REASON = 400  # characters of why a dialogue has no total, in a message
Reward = Callable[[Trajectory], Awaitable[Score]]
# From trajectories, their scores, the group's size and names of rewards to scores with these compared pairwise.
Compare = Callable[[Sequence[Trajectory], Sequence[Score], int, Collection[str]], Awaitable[list[Score]]]


@dataclass(frozen=True)
class Rollout:
    """What one rank brings back from a step: one entry per row in every field, failed dialogues included.

    ``samples`` of rows without a total are blank. ``usages``: what
    each dialogue's language models were asked, None where none plays the client. Seconds are wall clock, those of the
    rollout what training waited for it.
    """

    trajectories: tuple[Trajectory, ...]
    scores: tuple[Score, ...]
    samples: tuple[Sample, ...]
    usages: tuple[DialogueUsage | None, ...]
    rollout_seconds: float
    score_seconds: float

    @property
    def totals(self) -> list[float | None]:
        """The total of each row; None for a failed dialogue and for one that could not be scored."""
        return [score.value for score in self.scores]


class Played(NamedTuple):
    """Dialogues that were played and not scored yet, (rows,) each; usages as in a Rollout."""

    trajectories: tuple[Trajectory, ...]
    usages: tuple[DialogueUsage | None, ...]


class Player(NamedTuple):
    """A kind of client: its rules, and what makes one."""

    spec: ClientSpec
    make_client: MakeClient


@dataclass(frozen=True)
class RolloutWorker:
    """Runs and scores dialogues between the policy and simulated clients, each of one of ``players``.

    Every row of a group meets the same client: the client's seed comes from (run seed, step, group), so that the
    opening is shared and advantages compare replies. The policy's seed comes from (run seed, step, dialogue index).
    """

    server: PolicyServer
    templates: Mapping[Language, ChatTemplate]
    sampling: Sampling
    cards: Mapping[str, PersonaCard]
    players: Sequence[Player]
    reward: Reward
    seed: int
    group_size: int
    concurrency: int
    deadline_seconds: float | None = None
    compare: Compare | None = None

    async def play(
        self, planned: Sequence[Group], step: int, first_row: int, adapter: str | None, slots: asyncio.Semaphore
    ) -> Played:
        """Play one dialogue per card and client spec, as rows ``first_row``.. of ``step``, in ``slots`` shared with
        other steps."""
        plans = [self._plan(*group, step, first_row + offset, adapter) for offset, group in enumerate(planned)]

        async def one(plan: DialoguePlan) -> Trajectory:
            async with slots:  # the deadline counts from here
                return await run_dialogue(plan, self.deadline_seconds)

        trajectories = await asyncio.gather(*(one(plan) for plan in plans))
        return Played(tuple(trajectories), tuple(usage_of(plan.client) for plan in plans))

    async def score(self, played: Played, waited: float, pairwise: Collection[str] = ()) -> Rollout:
        """Score dialogues that are written down. ``waited``: seconds that the step waited for them.

        ``pairwise``: the rewards that are compared within each group, whose rows must all be here then.
        """
        started, trajectories = time.monotonic(), played.trajectories
        scores = await asyncio.gather(*(score_row(trajectory, self.reward) for trajectory in trajectories))
        if pairwise and self.compare:
            scores = await self.compare(trajectories, scores, self.group_size, pairwise)
        samples = [self._sample(*pair) for pair in zip(trajectories, scores, strict=True)]
        return Rollout(
            trajectories=trajectories,
            scores=tuple(scores),
            samples=tuple(samples),
            usages=played.usages,
            rollout_seconds=waited,
            score_seconds=time.monotonic() - started,
        )

    def _plan(self, card_id: str, spec: str, step: int, row: int, adapter: str | None) -> DialoguePlan:
        group, member = divmod(row, self.group_size)
        card = self.cards[card_id]
        player = next(player for player in self.players if player.spec.name == spec)
        client_seed = derived_seed(self.seed, "client", step, group)
        policy_seed = derived_seed(self.seed, "policy", step, row)
        return DialoguePlan(
            dialogue_id=f"{step:06d}-{group:03d}-{member:03d}-{card_id}",
            card=card,
            spec=player.spec,
            seed=client_seed,
            client=player.make_client(card, client_seed),
            supporter=PolicySupporter(self.server, self.templates[card.language], adapter, policy_seed, self.sampling),
        )

    def _sample(self, trajectory: Trajectory, score: Score) -> Sample:
        template = next(iter(self.templates.values()))
        if score.value is None:
            return blank_sample(template.end_of_turn)
        said = [turn.supporter for turn in trajectory.turns]
        return build_sample(said, template.end_of_turn, retold=template.form != "plain")


def check_budget(rows: Sequence[Mapping[str, Any]], step: int, budget: float) -> None:
    """Raise RunError when more dialogues failed, or more could not be scored, than a run may lose at one step."""
    failed = [row["evidence"] for row in rows if row["failed"]]
    unscored = [row["evidence"] for row in rows if not row["failed"] and row["total"] is None]
    for lost, of, what in (
        (failed, len(rows), "dialogues failed"),
        (unscored, len(rows) - len(failed), "dialogues could not be scored"),
    ):
        if lost and len(lost) > budget * of:
            reason, count = Counter(lost).most_common(1)[0]
            raise RunError(
                f"step {step}: {len(lost)} of {of} {what}, more than trainer.error_budget={budget:g} allows; the most "
                f"frequent reason ({count} times): {reason}; mend it and resume from the last checkpoint"
            )


def why_unscored(score: Score) -> str:
    """The evidence of the parts without a value; of a score without parts its own. Short enough for a message."""
    told = [f"{part.name}: {part.evidence}" for part in score.parts if part.value is None]
    text = "; ".join(told) or score.evidence
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def summary(trajectory: Trajectory, score: Score) -> dict[str, Any]:
    """What the step's metrics need of one row; small, since every rank sends its own."""
    replies = [turn.supporter for turn in trajectory.turns]
    return {
        "failed": trajectory.stop is Stop.ERROR,
        "outcome": Outcome.of(trajectory),
        "score": score,
        "total": score.value,
        "evidence": why_unscored(score),
        "final_emotion": trajectory.final_emotion,
        "turns": len(replies),
        "replies": [reply.text for reply in replies],
        "tokens": sum(len(reply.ids) for reply in replies),
        "truncated": sum(reply.truncated for reply in replies),
    }


def rates(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and rates over a step's rows; a mean over nothing is None."""
    played = [row for row in rows if not row["failed"]]
    replies = sum(row["turns"] for row in rows)
    return {
        "mean_final_emotion": _mean([row["final_emotion"] for row in played]),
        "reward": _mean([row["total"] for row in played if row["total"] is not None]),
        "dialogues": len(rows),
        "error_rate": 1 - len(played) / len(rows),
        "none_rate": sum(row["total"] is None for row in played) / len(played) if played else None,
        "turns": _mean([row["turns"] for row in played]),
        "reply_tokens": sum(row["tokens"] for row in rows) / replies if replies else None,
        "tokens": sum(row["tokens"] for row in rows),
        "truncation_rate": sum(row["truncated"] for row in rows) / replies if replies else None,
        "repetition": repetition(row["replies"] for row in rows),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
