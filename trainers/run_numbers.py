"""The numbers of a run that follow from its dialogues: totals, advantages, each step's means, the summary.

Computed from the record alone, so that ``trainers.verification`` can compare them with what the run wrote down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from envs.errors import InputError
from envs.trajectory import Stop, Trajectory, Turn
from rewards.emotion import EmotionReward
from rewards.emotion_label import EmotionLabelReward
from rewards.format import FormatReward
from rewards.reward import Reward, scored
from rewards.shaping import LengthReward, RepetitionReward
from trainers.config import RunConfig
from trainers.credit import Credit, GroupRelative
from trainers.evaluation import Comparison, Evaluation

# Those that need nothing but the record. A judge and follow-ups need models, or the record of what these answered.
REWARDS: dict[str, Callable[[], Reward]] = {
    "emotion": EmotionReward,
    "format-think": lambda: FormatReward("think"),
    "format-kardia": lambda: FormatReward("kardia"),
    "emotion-label": EmotionLabelReward,
    "length": LengthReward,
    "repetition": RepetitionReward,
}


class Played(NamedTuple):
    """A dialogue as later numbers need it: ``trajectory`` without token ids, the count of sampled tokens, its total."""

    trajectory: Trajectory
    tokens: int
    total: float | None


class Scorer:
    """Scores dialogues again with the rewards and weights of a run's config. A context manager."""

    def __init__(self, config: RunConfig) -> None:
        unknown = [term.name for term in config.rewards if term.name not in REWARDS]
        if unknown:
            raise InputError(f"rewards: {unknown[0]!r} can't be scored from the record; known: {', '.join(REWARDS)}")
        self._rewards = [(REWARDS[term.name](), term.weight) for term in config.rewards]
        self._runner = asyncio.Runner()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def played(self, trajectory: Trajectory) -> Played:
        """The dialogue with its total, less its token ids."""
        total = self._runner.run(scored(trajectory, self._rewards)).total
        tokens = sum(len(turn.supporter.ids) for turn in trajectory.turns)
        turns = tuple(_without_ids(turn) for turn in trajectory.turns)
        return Played(trajectory.model_copy(update={"turns": turns}), tokens, total)


def _without_ids(turn: Turn) -> Turn:
    supporter = turn.supporter.model_copy(update={"prompt_ids": (), "ids": (), "logprobs": ()})
    return turn.model_copy(update={"supporter": supporter})


def step_of(dialogue_id: str) -> int | None:
    """The step that a training dialogue belongs to: its id begins with it."""
    step = dialogue_id.split("-", 1)[0]
    return int(step) if step.isdigit() else None


def credit_of(rows: Sequence[Played], config: RunConfig) -> Credit:
    """Group-relative credit of one step's dialogues. Raises ValueError when they don't make whole groups."""
    credit = GroupRelative(config.trainer.dialogues_per_card, config.trainer.scale_rewards)
    return credit.assign([row.total for row in rows])


def step_numbers(rows: Sequence[Played], config: RunConfig) -> dict[str, Any]:
    """The numbers of a step's line of metrics.jsonl that follow from its dialogues; a mean over nothing is None."""
    talks = [row for row in rows if row.trajectory.stop is not Stop.ERROR]
    replies = [turn.supporter for row in rows for turn in row.trajectory.turns]
    tokens, credit = sum(row.tokens for row in rows), credit_of(rows, config)
    return {
        "dialogues": len(rows),
        "mean_final_emotion": _mean([row.trajectory.emotions[-1] for row in talks]),
        "reward": _mean([row.total for row in talks if row.total is not None]),
        "error_rate": 1 - len(talks) / len(rows),
        "none_rate": _mean([float(row.total is None) for row in talks]),
        "turns": _mean([float(len(row.trajectory.turns)) for row in talks]),
        "reply_tokens": tokens / len(replies) if replies else None,
        "tokens": tokens,
        "truncation_rate": _mean([float(reply.truncated) for reply in replies]),
        "groups": credit.groups,
        "groups_without_variance": credit.groups_without_variance,
    }


def summary_numbers(base: Evaluation, tuned: Evaluation, comparison: Comparison) -> dict[str, Any]:
    """The numbers of summary.json that follow from the evaluations. ``dialogues``: held-out ones, with the adapter."""
    rates = ("mean_final_emotion", "success_rate", "failure_rate")
    difference = comparison.mean_final_emotion
    return {
        "dialogues": tuned.dialogues,
        "base": {name: getattr(base, name).mean for name in rates},
        "tuned": {name: getattr(tuned, name).mean for name in rates},
        "difference": {"mean": difference.mean, "ci95": list(difference.ci95) if difference.ci95 else None},
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
