"""The numbers of a run that follow from its dialogues: totals, advantages, each step's means, the summary.

Computed from the record alone, so that ``trainers.verification`` can compare them with what the run wrote down.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envs.trajectory import Score, Stop, Trajectory, Turn
from rewards.dead_signal import SignalCount, SwitchRule, count_signals, signal_metrics, switched
from trainers.config import RunConfig
from trainers.credit import Credit, CreditAssigner, GroupDecoupled, GroupRelative, ValueBased, ValueLoss, row_parts
from trainers.evaluation import BASE, COMPARISON, TUNED, WARM_COMPARISON, WARM_START, Comparison, Evaluation
from trainers.scoring import recorded_scoring, score_row
from trainers.watch import repetition

Counts = Mapping[str, SignalCount]
DEFAULT_RULE = SwitchRule()
RATES = ("mean_final_emotion", "success_rate", "failure_rate")


class Played(NamedTuple):
    """A dialogue as later numbers need it: ``trajectory`` without token ids, the count of sampled tokens, its score."""

    trajectory: Trajectory
    tokens: int
    score: Score

    @property
    def total(self) -> float | None:
        """Its total; None for a failed dialogue and for one that could not be scored."""
        return self.score.value


class Scorer:
    """Scores dialogues again with the rewards, gates and judgments of a recorded run. A context manager."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config, self._scoring = config, recorded_scoring(config, folder)
        self._history: list[Counts] = []
        self._runner = asyncio.Runner()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def played(self, trajectory: Trajectory) -> Played:
        """The dialogue with its score, less its token ids."""
        return _played(trajectory, self._runner.run(score_row(trajectory, self._scoring)))

    def step(self, trajectories: Sequence[Trajectory]) -> list[Played]:
        """The dialogues of one training step, steps in their order: rewards that were dead on the steps before are
        compared pairwise. Raises ValueError when these don't make whole groups."""
        return self._runner.run(self._step(trajectories))

    async def _step(self, trajectories: Sequence[Trajectory]) -> list[Played]:
        scores = [await score_row(trajectory, self._scoring) for trajectory in trajectories]
        size, rule = self._config.trainer.dialogues_per_card, switch_rule(self._config)
        if rule.pairwise:
            scores = await self._scoring.compared(trajectories, scores, size, switched(self._history, rule))
            self._history.append(count_signals(row_parts(scores), size))
        return [_played(*pair) for pair in zip(trajectories, scores, strict=True)]


def _played(trajectory: Trajectory, score: Score) -> Played:
    tokens = sum(len(turn.supporter.ids) for turn in trajectory.turns)
    turns = tuple(_without_ids(turn) for turn in trajectory.turns)
    return Played(trajectory.model_copy(update={"turns": turns}), tokens, score)


def _without_ids(turn: Turn) -> Turn:
    supporter = turn.supporter.model_copy(update={"prompt_ids": (), "ids": (), "logprobs": ()})
    return turn.model_copy(update={"supporter": supporter})


def step_of(dialogue_id: str) -> int | None:
    """The step that a training dialogue belongs to: its id begins with it."""
    step = dialogue_id.split("-", 1)[0]
    return int(step) if step.isdigit() else None


def credit_of(rows: Sequence[Played], config: RunConfig) -> Credit:
    """Credit of one step's dialogues. Raises ValueError when they don't make whole groups."""
    return credit_assigner(config).of([row.score for row in rows], [len(row.trajectory.turns) for row in rows])


def credit_assigner(config: RunConfig) -> CreditAssigner:
    """The config's way from scores to advantages."""
    trainer = config.trainer
    kind, size = trainer.credit, trainer.dialogues_per_card
    if trainer.algorithm == "ppo":
        return ValueBased(
            kind,
            trainer.attribution,
            discount=trainer.discount,
            lam=trainer.gae_lambda,
            reference_kl=trainer.kl,
            value=ValueLoss(trainer.value_coef, trainer.value_clip, trainer.value_learning_rate),
        )
    if trainer.combine == "decoupled":
        return GroupDecoupled(size, kind, tuple(term.weight for term in config.rewards))
    return GroupRelative(size, kind, trainer.scale_rewards, trainer.attribution, trainer.turn_discount)


def step_numbers(rows: Sequence[Played], config: RunConfig, history: Sequence[Counts] = ()) -> dict[str, Any]:
    """The numbers of a step's line of metrics.jsonl that follow from its dialogues; a mean over nothing is None.

    ``history``: the counts of the steps before, oldest first.
    """
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
        "repetition": repetition([turn.supporter.text for turn in row.trajectory.turns] for row in rows),
        "groups": credit.groups,
        "groups_without_variance": credit.groups_without_variance,
        "rewards": reward_numbers(
            [row.score for row in rows], config.trainer.dialogues_per_card, history, switch_rule(config)
        ),
    }


def reward_numbers(
    scores: Sequence[Score], group_size: int, history: Sequence[Counts] = (), rule: SwitchRule = DEFAULT_RULE
) -> dict[str, dict[str, Any]]:
    """For each part of the totals (B,): its mean, how many rows have none, and how many groups it tells apart in
    nothing, with both rates, the second also over the rule's window; a rate over nothing is None."""
    rows = row_parts(scores)
    told = signal_metrics([*history[-rule.window :], count_signals(rows, group_size)], rule)
    numbers = {}
    for place, (name, counts) in enumerate(told.items()):
        known = [value for row in rows if (value := row[place].value) is not None]
        numbers[name] = {"mean": _mean(known), **counts}
    return numbers


def switch_rule(config: RunConfig) -> SwitchRule:
    """When the config's rewards are compared pairwise."""
    term = config.dead_signals
    return SwitchRule(
        window=term.window, max_dead_rate=term.max_rate, min_groups=term.min_groups, pairwise=tuple(term.pairwise)
    )


def counts_of(line: Mapping[str, Any]) -> Counts:
    """The counts in a line of metrics.jsonl."""
    fields = SignalCount.model_fields
    return {
        name: SignalCount.model_validate({key: one[key] for key in fields})
        for name, one in line.get("rewards", {}).items()
    }


def read_history(metrics: Path) -> list[Counts]:
    """The counts of the steps in a metrics.jsonl, oldest first; none where there is no file."""
    if not metrics.exists():
        return []
    return [counts_of(json.loads(line)) for line in metrics.read_text(encoding="utf-8").splitlines()]


def summary_numbers(
    evaluations: Mapping[str, Evaluation], comparisons: Mapping[tuple[str, str], Comparison]
) -> dict[str, Any]:
    """The numbers of summary.json that follow from the evaluations. ``dialogues``: held-out ones, with the adapter.

    ``comparisons``: as ``trainers.evaluation.COMPARISONS`` names them. With a warm start, ``shares`` tells what it gave
    over the base, and what RL gave over it.
    """
    numbers: dict[str, Any] = {"dialogues": evaluations[TUNED].dialogues}
    for name in (name for name in (BASE, WARM_START, TUNED) if name in evaluations):
        numbers[name] = {rate: getattr(evaluations[name], rate).mean for rate in RATES}
    numbers["difference"] = _difference(comparisons[TUNED, COMPARISON])
    if WARM_START in evaluations:
        gained, added = comparisons[WARM_START, COMPARISON], comparisons[TUNED, WARM_COMPARISON]
        numbers["shares"] = {"warm_start": _difference(gained), "rl": _difference(added)}
    return numbers


def _difference(comparison: Comparison) -> dict[str, Any]:
    difference = comparison.mean_final_emotion
    return {"mean": difference.mean, "ci95": list(difference.ci95) if difference.ci95 else None}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
