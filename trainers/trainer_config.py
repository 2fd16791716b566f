"""The part of a run's configuration that says how the adapter is trained. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from trainers.client_config import Count, Positive, Section, Share
from trainers.quantization import Quantization

QUANTISED_TOLERANCE = 0.5  # nats; of the small policy a token moves by 0.1 in 8 bits, by 0.6 in 4
BF16_TOLERANCE = 1e-2  # nats; two engines that round to eight bits of mantissa differ by more than this on some token


class Trainer(Section):
    """How the adapter is trained. A step is one batch of dialogues and the updates on it."""

    algorithm: Literal["grpo", "ppo"] = Field(
        default="grpo",
        description="grpo: advantages within a group (arXiv 2402.03300); ppo: from a value head (arXiv 1707.06347).",
    )
    credit: Literal["terminal", "turn", "utterance"] = Field(
        default="terminal",
        description="What a reply is credited with: the whole dialogue, its turn's change, or a share of the whole.",
    )
    attribution: str = Field(
        default="change",
        description="credit utterance: whose shares; `change`: the client's own, or rubric-NAME, rating replies.",
    )
    turn_discount: Share = Field(
        default=1.0,
        description="grpo, credit turn: what a reward counts one turn earlier; 1: as much.",
    )
    steps: Count = Field(default=24, description="Batches of dialogues.")
    cards_per_step: Count = Field(default=4, description="Cards in a batch.")
    dialogues_per_card: Count = Field(
        default=8, description="Dialogues with each card: with grpo the group that a dialogue is compared with."
    )
    minibatches: Count = Field(default=2, description="Parts of a batch of dialogues, with an optimizer step on each.")
    iterations: Count = Field(default=1, description="How often a batch of dialogues is gone through.")
    max_staleness: int = Field(
        default=0,
        ge=0,
        description="Steps by which the weights that sample a dialogue may be older than those that learn from it; "
        "0: none, and training waits for each step's dialogues.",
    )
    micro_batch: Count = Field(default=8, description="Dialogues in one forward pass on one device.")
    micro_batch_tokens: Count | None = Field(
        default=None,
        description="Most tokens of one pass: what has more is taken in several; none: only dialogues are counted.",
    )
    learning_rate: Positive = Field(default=3e-3, description="AdamW's learning rate.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Course of the learning rate."
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="Optimizer steps over which the learning rate rises to its value."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    kl: float = Field(
        default=0.04,
        ge=0,
        description="Weight of the KL divergence from the base model, or the warm start; ppo: in the rewards.",
    )
    epsilon: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="Clip of the probability ratio, both ways."
    )
    epsilon_high: Positive | None = Field(
        default=None, description="Clip of the probability ratio upwards (arXiv 2503.14476); none: epsilon."
    )
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"] = Field(
        default="grpo",
        description="How token losses are clipped and averaged: grpo over each dialogue, dapo over the batch.",
    )
    importance_correction: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "none"] = (
        Field(
            default="token_truncate",
            description="How the loss corrects for the sampler's likelihoods, as TRL names it.",
        )
    )
    combine: Literal["total", "decoupled"] = Field(
        default="total",
        description="Advantages of the weighted total, or each reward's own, then added (GDPO, arXiv 2601.05242).",
    )
    scale_rewards: Literal["group", "none"] = Field(
        default="group", description="Whether advantages are divided by the group's standard deviation."
    )
    discount: Share = Field(default=1.0, description="ppo: what a reward counts one sampled token earlier.")
    gae_lambda: Share = Field(
        default=1.0,
        description="ppo: 1: returns less values; below, values stand in for what follows (arXiv 1506.02438).",
    )
    value_coef: Positive = Field(default=0.5, description="ppo: weight of the value head's loss.")
    value_clip: Positive = Field(default=0.2, description="ppo: how far a value may move before its loss is clipped.")
    value_learning_rate: Positive = Field(
        default=0.02, description="ppo: AdamW's for the value head: about how far a value moves in an optimizer step."
    )
    adam_epsilon: Positive = Field(default=1e-8, description="AdamW's epsilon, which bounds steps of tiny gradients.")
    max_grad_norm: Positive = Field(default=1.0, description="Gradient clip.")
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: a third more time, far less memory."
    )
    checkpoint_every: Count = Field(default=10, description="Steps between checkpoints.")
    keep_checkpoints: Count = Field(default=2, description="Checkpoints that are kept, newest first.")
    report_to: list[Literal["wandb", "tensorboard", "mlflow", "trackio"]] = Field(
        default=[], description="Trackers; metrics.jsonl is written always."
    )
    logprob_tolerance: Positive = Field(
        default=1e-4,
        description="Nats: the run fails when sampling and training log-probabilities of a token differ by more.",
    )
    error_budget: Share = Field(
        default=0.25, description="The run halts when a larger share of a step's dialogues or scores fails."
    )
    deepspeed: Path | None = Field(default=None, description="DeepSpeed's JSON file, for several training processes.")
    rank_timeout: Positive = Field(
        default=1800.0, description="Seconds after which training processes give one up that doesn't come or is silent."
    )


def zero_stage(deepspeed: Path | None) -> int:
    """The stage of ZeRO in DeepSpeed's file; 0 without one. Raises OSError, ValueError, KeyError or TypeError."""
    if deepspeed is None:
        return 0
    return json.loads(deepspeed.read_text(encoding="utf-8"))["zero_optimization"]["stage"]


def trainer_conflicts(trainer: Trainer, dtype: str, devices: int) -> list[str]:
    """What can't be combined, a line each, with the key first. ``dtype``: the policy's; ``devices``: how many train."""
    problems, rows = [], trainer.cards_per_step * trainer.dialogues_per_card
    pieces = trainer.minibatches * trainer.micro_batch * devices
    if rows % pieces:
        problems.append(
            f"trainer.micro_batch: {rows} dialogues a step (cards_per_step x dialogues_per_card) are no multiple of "
            f"minibatches x micro_batch x training devices ({pieces}); change one of these"
        )
    if dtype == "bfloat16" and trainer.logprob_tolerance < BF16_TOLERANCE:
        problems.append(
            f"trainer.logprob_tolerance: {trainer.logprob_tolerance:g} can't hold in bfloat16, where two engines "
            f"round differently; raise it to {BF16_TOLERANCE:g} or more, or set policy.dtype to float32"
        )
    if trainer.combine == "decoupled" and trainer.scale_rewards == "none":
        problems.append("trainer.scale_rewards: decoupled rewards are always scaled; set group, or combine: total")
    if trainer.max_staleness and trainer.importance_correction == "none":
        problems.append(
            "trainer.importance_correction: none would take stale dialogues for the policy's own; name a correction, "
            "or set trainer.max_staleness to 0"
        )
    return [*problems, *_algorithm_conflicts(trainer)]


def quantised_conflicts(trainer: Trainer, quantization: Quantization) -> list[str]:
    """What follows from a sampler that holds the weights as they were before they were quantised."""
    if quantization == "none":
        return []
    problems = []
    if trainer.logprob_tolerance < QUANTISED_TOLERANCE:
        problems.append(
            f"trainer.logprob_tolerance: {trainer.logprob_tolerance:g} can't hold with policy.quantization, since the "
            f"sampler's weights are not quantised; raise it to {QUANTISED_TOLERANCE:g} or more"
        )
    if trainer.importance_correction == "none":
        problems.append(
            "trainer.importance_correction: none leaves out that the sampler's weights are not quantised "
            "(policy.quantization); set token_truncate"
        )
    if trainer.deepspeed:
        problems.append("trainer.deepspeed: can't share out quantised weights; remove it, or policy.quantization")
    return problems


def _algorithm_conflicts(trainer: Trainer) -> list[str]:
    problems, given = [], trainer.model_fields_set
    if trainer.algorithm == "grpo":
        if trainer.dialogues_per_card < 2:
            problems.append(
                "trainer.dialogues_per_card: grpo compares dialogues with the same card; set 2 or more, or "
                "trainer.algorithm to ppo"
            )
        for name in ("discount", "gae_lambda", "value_coef", "value_clip", "value_learning_rate"):
            if name in given and getattr(trainer, name) != Trainer.model_fields[name].default:
                problems.append(f"trainer.{name}: says nothing to grpo, which has no value head; remove it")
    if trainer.cards_per_step * trainer.dialogues_per_card < 2:
        problems.append("trainer.cards_per_step: a step of one dialogue compares with nothing; set 2 or more")
    if trainer.algorithm == "ppo" and trainer.combine == "decoupled":
        problems.append("trainer.combine: ppo has no groups to compare each reward in; set total")
    if trainer.credit == "utterance" and trainer.combine == "decoupled":
        problems.append("trainer.combine: shares of a whole (credit: utterance) need one total; set total")
    by_turn = trainer.algorithm == "grpo" and trainer.credit == "turn" and trainer.combine == "total"
    if trainer.turn_discount != 1 and not by_turn:
        problems.append("trainer.turn_discount: is for grpo with credit: turn and combine: total; remove it")
    if trainer.attribution != "change" and trainer.credit != "utterance":
        problems.append("trainer.attribution: says nothing without trainer.credit: utterance; remove it, or set that")
    return problems
