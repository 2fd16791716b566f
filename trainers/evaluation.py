"""Evaluation: how clients feel at the end of a talk, with intervals, for one supporter and for the difference of two.

A summary is a pure function of the trajectories, the cards and the settings, so that a record can be checked without a
model. Base and tuned play the same cards with the same seeds, and are compared dialogue by dialogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from envs.cards import Language, PersonaCard
from envs.client_spec import ClientSpec
from envs.clients import make_client
from envs.clients.client import Client
from envs.clients.retest import Retest, retests_of
from envs.dialogue import DialoguePlan, Supporter, run_dialogues
from envs.errors import InputError, RunError
from envs.hashing import derived_seed
from envs.receipts import TrajectoryLog, read_log
from envs.trajectory import Emotion, Record, Stop, Trajectory
from trainers.manifest import unwritable, write_json
from trainers.run_files import append_lines
from trainers.statistics import Estimate, Resampling, differences, estimate_by_group, estimate_mean
from trainers.usage import USAGE, DialogueUsage, usage_line, usage_of

# What the folder of an evaluation holds, and what lies beside two of them: the comparison with base, or a warm start.
TRAJECTORIES, SUMMARY, COMPARISON = "trajectories.jsonl", "evaluation.json", "comparison.json"
WARM_COMPARISON = "comparison_warm_start.json"
# The policies that a run evaluates; the second one only where it warm-started.
BASE, WARM_START, TUNED = "base", "warm_start", "tuned"
# Every comparison that a run can hold: (the folder that it lies in, its name) -> what it compares that folder's with.
# Tuned with base is the first, since every run holds it.
COMPARISONS = {(TUNED, COMPARISON): BASE, (WARM_START, COMPARISON): BASE, (TUNED, WARM_COMPARISON): WARM_START}


@dataclass(frozen=True)
class DialogueKey:
    """Which dialogue of an evaluation: a card and one of the seeds. All that a supporter may know beforehand."""

    card_id: str
    language: Language
    seed: int

    @property
    def dialogue_seed(self) -> int:
        """What client and supporter draw from: the same whoever the supporter is, another for every dialogue."""
        return derived_seed("evaluation", self.card_id, self.seed)


UNKNOWN = "unknown"  # the group of cards that don't say

SupporterFactory = Callable[[DialogueKey], Supporter]
MakeClient = Callable[[PersonaCard, int], Client]


class EvaluationSettings(Record):
    """What a summary depends on besides its trajectories. Every card is played once with each of ``seeds``.

    A talk that ends at ``success_at`` or above is a success, one that ends below ``failure_below`` a failure (0-100).
    """

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    success_at: Emotion
    failure_below: Emotion
    resampling: Resampling = Resampling()


class Outcome(Record):
    """How one dialogue ended. ``final_emotion`` is None when it failed, and ``error`` then says why."""

    card_id: str
    seed: int
    dialogue_seed: int
    final_emotion: Emotion | None
    turns: int
    stop: Stop
    error: str | None


class Evaluation(Record):
    """One supporter over cards and seeds. Emotions are 0-100, rates in [0, 1]; ``by_...`` hold the final emotion.

    ``retest``: how far the client's appraisals of the same turn differ, where its spec asks for them again.
    """

    settings: EvaluationSettings
    spec: str
    spec_hash: str
    policy_versions: tuple[str, ...]
    cards: int
    dialogues: int
    errors: int
    mean_final_emotion: Estimate
    success_rate: Estimate
    failure_rate: Estimate
    turns: Estimate
    stops: dict[Stop, int]
    by_need: dict[str, Estimate]
    by_temperament: dict[str, Estimate]
    retest: Retest | None
    outcomes: tuple[Outcome, ...]


class Comparison(Record):
    """Tuned less base, paired by card and seed. ``missing`` counts the pairs in which either dialogue failed."""

    mean_final_emotion: Estimate
    success_rate: Estimate
    failure_rate: Estimate
    turns: Estimate
    by_need: dict[str, Estimate]
    by_temperament: dict[str, Estimate]


def comparisons_among(sides: Collection[str]) -> dict[tuple[str, str], str]:
    """Those of ``COMPARISONS`` for which a run has both evaluations."""
    return {key: other for key, other in COMPARISONS.items() if {key[0], other} <= set(sides)}


def settings_for(spec: ClientSpec, seeds: int, resampling: Resampling | None = None) -> EvaluationSettings:
    """Settings with the seeds 0 to ``seeds`` - 1 and the thresholds of ``spec``."""
    return EvaluationSettings(
        seeds=tuple(range(seeds)),
        success_at=spec.success_at,
        failure_below=spec.failure_below,
        resampling=resampling or Resampling(),
    )


async def play(
    factory: SupporterFactory,
    cards: Sequence[PersonaCard],
    spec: ClientSpec,
    seeds: Sequence[int],
    *,
    client: MakeClient | None = None,
    concurrency: int = 32,
    deadline_seconds: float | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
    on_usage: Callable[[str, DialogueUsage], None] = lambda dialogue_id, usage: None,
) -> list[Trajectory]:
    """Every card with every seed, each with a supporter of its own. One trajectory a dialogue, card by card.

    ``client`` makes the clients; None: the spec alone is enough. ``on_usage`` is told what each
    dialogue's models were asked, where models play the clients.
    """
    plans = []
    client = client or (lambda card, seed: make_client(card, spec, seed))
    for card in cards:
        for key in (DialogueKey(card.id, card.language, seed) for seed in seeds):
            drawn = key.dialogue_seed
            name = f"evaluation/{card.id}/{key.seed}"
            plans.append(DialoguePlan(name, card, spec, drawn, client(card, drawn), factory(key)))
    trajectories = await run_dialogues(plans, concurrency, deadline_seconds, on_done)
    for plan in plans:
        if usage := usage_of(plan.client):
            on_usage(plan.dialogue_id, usage)
    return trajectories


async def evaluate(
    factory: SupporterFactory,
    cards: Sequence[PersonaCard],
    spec: ClientSpec,
    settings: EvaluationSettings,
    folder: Path,
    *,
    client: MakeClient | None = None,
    concurrency: int = 32,
    deadline_seconds: float | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> Evaluation:
    """Play, write the trajectories with receipts to ``folder``, then summarise and write that beside them.

    Raises InputError when the folder holds an evaluation already, RunError when it can't be written.
    """
    check_unused(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    log, usages = TrajectoryLog(folder / TRAJECTORIES), []
    trajectories = await play(
        factory,
        cards,
        spec,
        settings.seeds,
        client=client,
        concurrency=concurrency,
        deadline_seconds=deadline_seconds,
        on_done=on_done,
        on_usage=lambda dialogue_id, usage: usages.append(usage_line(dialogue_id, usage)),
    )
    log.append(*trajectories)
    if usages:
        append_lines(folder / USAGE, usages)
    evaluation = summarise(trajectories, cards, settings)
    write_json(folder / SUMMARY, evaluation.model_dump(mode="json"))
    return evaluation


def check_budget(evaluation: Evaluation, budget: float, folder: Path) -> str | None:
    """What to say of dialogues that broke off, or None. Raises RunError when their share is larger than ``budget``."""
    reasons = [outcome.error for outcome in evaluation.outcomes if outcome.error]
    if not reasons:
        return None
    told = f"{folder}: {len(reasons)} of {evaluation.dialogues} dialogues broke off; the first: {reasons[0]}"
    if len(reasons) > budget * evaluation.dialogues:
        raise RunError(f"{told}\nThat is more than trainer.error_budget allows; mend the cause and evaluate again")
    return told


def check_unused(folder: Path) -> None:
    """Raises InputError when an evaluation lies in ``folder``."""
    if (folder / TRAJECTORIES).exists():
        raise InputError(f"{folder}: an evaluation lies here already; name another folder, or remove this one")


def read_trajectories(folder: Path) -> list[Trajectory]:
    """The trajectories in an evaluation's folder, checked by their receipts. Raises ReceiptError naming the line."""
    return [line.trajectory for line in read_log(folder / TRAJECTORIES)]


def summarise(
    trajectories: Sequence[Trajectory], cards: Sequence[PersonaCard], settings: EvaluationSettings
) -> Evaluation:
    """The evaluation that ``trajectories`` amount to; the same for any order of theirs.

    Raises InputError for a trajectory of an unknown or changed card, a foreign seed, another spec, or played twice.
    """
    people = {card.id: card for card in cards}
    played = _by_key(trajectories, people, settings)
    ordered = list(played.values())
    if not ordered:
        raise InputError("an evaluation needs at least one dialogue")
    return Evaluation(
        settings=settings,
        spec=ordered[0].spec,
        spec_hash=ordered[0].spec_hash,
        policy_versions=tuple(sorted({turn.supporter.policy_version for t in ordered for turn in t.turns})),
        cards=len({card_id for card_id, _ in played}),
        dialogues=len(ordered),
        errors=sum(trajectory.stop is Stop.ERROR for trajectory in ordered),
        **_estimates(_measured(ordered, settings), [people[card_id] for card_id, _ in played], settings.resampling),
        retest=retest if (retest := retests_of(ordered)).pairs + retest.missing else None,
        stops=dict(sorted(Counter(trajectory.stop for trajectory in ordered).items())),
        outcomes=tuple(_outcome(seed, trajectory) for (_, seed), trajectory in played.items()),
    )


def compare(
    base: Sequence[Trajectory],
    tuned: Sequence[Trajectory],
    cards: Sequence[PersonaCard],
    settings: EvaluationSettings,
) -> Comparison:
    """The paired difference, tuned less base. Raises InputError as ``summarise`` does, and for unmatched pairs."""
    people = {card.id: card for card in cards}
    before, after = _by_key(base, people, settings), _by_key(tuned, people, settings)
    if alone := sorted(before.keys() ^ after.keys()):
        card_id, seed = alone[0]
        side = "tuned" if alone[0] in before else "base"
        raise InputError(
            f"card {card_id} with seed {seed} was not played by {side}; play the same cards and seeds with both"
        )
    if {t.spec_hash for t in before.values()} != {t.spec_hash for t in after.values()}:
        raise InputError("base and tuned were played by different client specs; evaluate both with the same one")
    first, second = _measured(list(before.values()), settings), _measured(list(after.values()), settings)
    change = {name: differences(first[name], second[name]) for name in first}
    return Comparison(**_estimates(change, [people[card_id] for card_id, _ in before], settings.resampling))


def _measured(trajectories: Sequence[Trajectory], settings: EvaluationSettings) -> dict[str, list[float | None]]:
    """What each dialogue measured, (dialogues,) by name; None where it failed."""
    finals = [trajectory.final_emotion for trajectory in trajectories]
    return {
        "mean_final_emotion": finals,
        "success_rate": [None if final is None else float(final >= settings.success_at) for final in finals],
        "failure_rate": [None if final is None else float(final < settings.failure_below) for final in finals],
        "turns": [None if t.final_emotion is None else float(len(t.turns)) for t in trajectories],
    }


def _estimates(
    measured: dict[str, list[float | None]], people: Sequence[PersonaCard], resampling: Resampling
) -> dict[str, Any]:
    """The fields that an Evaluation and a Comparison share. ``people`` (dialogues,) are the cards that were played."""
    cards, finals = [card.id for card in people], measured["mean_final_emotion"]
    needs = [card.hidden_need or UNKNOWN for card in people]
    temperaments = [card.temperament or UNKNOWN for card in people]
    return {name: estimate_mean(values, cards, resampling) for name, values in measured.items()} | {
        "by_need": estimate_by_group(finals, cards, needs, resampling),
        "by_temperament": estimate_by_group(finals, cards, temperaments, resampling),
    }


def _by_key(
    trajectories: Sequence[Trajectory], people: dict[str, PersonaCard], settings: EvaluationSettings
) -> dict[tuple[str, int], Trajectory]:
    """The trajectories by (card id, seed), sorted."""
    found: dict[tuple[str, int], Trajectory] = {}
    for trajectory in trajectories:
        card = people.get(trajectory.card_id)
        if card is None or card.hash != trajectory.card_hash:
            problem = "not among the cards" if card is None else "not as it was when it was played"
            raise InputError(f"{trajectory.dialogue_id}: {trajectory.card_id} is {problem}; give the run's own cards")
        seeds = {DialogueKey(card.id, card.language, seed).dialogue_seed: seed for seed in settings.seeds}
        if trajectory.seed not in seeds:
            raise InputError(f"{trajectory.dialogue_id}: seed {trajectory.seed} comes from none of {settings.seeds}")
        key = (card.id, seeds[trajectory.seed])
        if key in found:
            raise InputError(f"{trajectory.dialogue_id}: card {key[0]} with seed {key[1]} was played twice")
        found[key] = trajectory
    if len({trajectory.spec_hash for trajectory in found.values()}) > 1:
        raise InputError("the trajectories were played by different client specs; evaluate each spec by itself")
    return dict(sorted(found.items()))


def _outcome(seed: int, trajectory: Trajectory) -> Outcome:
    return Outcome(
        card_id=trajectory.card_id,
        seed=seed,
        dialogue_seed=trajectory.seed,
        final_emotion=trajectory.final_emotion,
        turns=len(trajectory.turns),
        stop=trajectory.stop,
        error=trajectory.error,
    )
