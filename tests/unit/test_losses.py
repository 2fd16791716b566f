"""The policy losses of all loss types, as the pinned TRL computes them, against a reference in plain loops."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.grpo_trainer import GRPOTrainer

from tests.reference import Batch, Grid, Rule, grids, masks, policy_loss, value_loss
from trainers.credit import GroupRelative, ValueBased, ValueLoss
from trainers.micro_batches import Passes
from trainers.packing import Positions
from trainers.train import TrainSettings, training_arguments
from trainers.trainer import DialogueTrainer

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")


@dataclass(frozen=True)
class Part:
    """How one rank's forward pass stands in the optimizer step: passes of a step, passes on a rollout, ranks, and the
    sampled tokens of the rollout on all ranks."""

    passes: int
    rollout_passes: int
    ranks: int
    tokens: float


def whole(batch: Batch) -> Part:
    return Part(1, 1, 1, batch.mask.sum())


def bare_trainer(kind: type[GRPOTrainer], rule: Rule, part: Part, logps: torch.Tensor, corrected: bool) -> Any:
    """A trainer without a model: it holds what its loss reads, and its forward pass gives ``logps`` (B, T)."""
    trainer = kind.__new__(kind)
    one_rank = SimpleNamespace(
        num_processes=part.ranks, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    vars(trainer).update(
        loss_type="grpo" if rule.loss_type == "gspo" else rule.loss_type,
        importance_sampling_level="sequence" if rule.loss_type == "gspo" else "token",
        epsilon_low=rule.low,
        # TRL's bound for CISPO is the ratio itself, not its distance from 1.
        epsilon_high=1 + rule.high if rule.loss_type == "cispo" else rule.high,
        beta=rule.beta,
        max_completion_length=rule.max_length,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=part.rollout_passes),
        current_gradient_accumulation_steps=part.passes,
        model=SimpleNamespace(training=True),
        accelerator=one_rank,
        use_vllm=corrected,
        vllm_importance_sampling_correction=True,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
    )
    return trainer


def trl_inputs(batch: Batch, part: Part, per_row: bool) -> dict[str, torch.Tensor]:
    """A batch under TRL's names; the mask is split over its two, so that neither alone tells what was sampled."""
    rows, columns = batch.mask.shape
    rng = np.random.default_rng(int(batch.mask.sum()) + columns)
    completion = np.maximum(batch.mask, rng.integers(0, 2, batch.mask.shape))
    tool = np.where(completion == 1, batch.mask, rng.integers(0, 2, batch.mask.shape))
    ids = torch.zeros(rows, columns, dtype=torch.long)
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": torch.tensor(completion).long(),
        "tool_mask": torch.tensor(tool).long(),
        "advantages": torch.tensor(batch.advantages[:, 0] if per_row else batch.advantages),
        "old_per_token_logps": torch.tensor(batch.old_logps),
        "ref_per_token_logps": torch.tensor(batch.ref_logps),
        "importance_sampling_ratio": torch.tensor(batch.sampler_ratios[:, :1] if per_row else batch.sampler_ratios),
        "num_items_in_batch": torch.tensor(part.tokens),
    }


def trl_loss(rule: Rule, batch: Batch, part: Part, per_row: bool = False, corrected: bool = True) -> tuple[float, Grid]:
    """TRL's loss and its gradient (B, T) by the policy's log-probabilities."""
    logps = torch.tensor(batch.logps, requires_grad=True)
    trainer = bare_trainer(GRPOTrainer, rule, part, logps, corrected)
    loss = GRPOTrainer._compute_loss(trainer, None, trl_inputs(batch, part, per_row))
    loss.backward()
    assert logps.grad is not None
    return loss.item(), logps.grad.numpy()


def close(found: Grid | float, expected: Grid | float) -> bool:
    return bool(np.allclose(found, expected, rtol=1e-6, atol=1e-10))


@st.composite
def batches(draw: st.DrawFn, least_rows: int = 1) -> Batch:
    """Random batches in which the update has moved the policy by 0.0001 to 3 nats a token, in some not at all."""
    mask = draw(masks().filter(lambda mask: mask.shape[0] >= least_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    moved = draw(st.sampled_from([0.0, 1e-4, 0.1, 0.3, 3.0]))
    logps = -rng.exponential(draw(st.sampled_from([0.01, 1.0, 8.0])), mask.shape)
    return Batch(
        logps=logps,
        old_logps=logps + moved * rng.normal(size=mask.shape),
        ref_logps=logps + draw(st.sampled_from([0.0, 0.1, 2.0])) * rng.normal(size=mask.shape),
        advantages=draw(grids(mask.shape, largest_power=2)),
        sampler_ratios=np.exp(0.2 * rng.normal(size=mask.shape)).clip(max=2.0),
        mask=mask,
    )


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    low = draw(st.floats(0.05, 0.5))
    high = draw(st.one_of(st.just(low), st.floats(0.05, 4.0)))
    return Rule(
        draw(st.sampled_from(LOSS_TYPES)), low, high, draw(st.sampled_from([0.0, 0.04, 1.0])), draw(st.integers(24, 99))
    )


def one_row(logps: list[float], old: list[float], advantages: list[float], mask: list[float]) -> Batch:
    def grid(numbers: list[float]) -> Grid:
        return np.array([numbers], dtype=np.float64)

    return Batch(grid(logps), grid(old), grid(logps), grid(advantages), np.ones((1, len(mask))), grid(mask))


def both(rule: Rule, batch: Batch) -> list[tuple[float, Grid]]:
    return [policy_loss(rule, batch), trl_loss(rule, batch, whole(batch))]


def test_a_ratio_past_the_clip_earns_no_more_and_moves_nothing():
    # Ratios 1.5, 0.5, 1.1 and 1.5 with advantages 2, -2, 2 and -2; the clip keeps [0.8, 1.2].
    # min(3, 2.4) = 2.4, fixed; min(-1, -1.6) = -1.6, fixed; min(2.2, 2.2), slope 2.2; min(-3, -2.4) = -3, slope -3.
    # The client's word in the middle counts nothing: loss = -(2.4 - 1.6 + 2.2 - 3) / 4 = 0.
    changes = [math.log(1.5), math.log(0.5), 5.0, math.log(1.1), math.log(1.5)]
    batch = one_row(changes, [0.0] * 5, [2, -2, 9, 2, -2], [1, 1, 0, 1, 1])
    for loss, gradient in both(Rule("grpo", 0.2, 0.2, 0.0, 10), batch):
        assert loss == pytest.approx(0.0, abs=1e-12)
        assert gradient[0] == pytest.approx([0, 0, 0, -2.2 / 4, 3 / 4])


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        # Three tokens at ratio 1 and advantage 1 in one dialogue, one at advantage -3 in another, none in the third.
        ("grpo", (-1 + 3) / 3),  # each dialogue's mean, then over three dialogues
        ("gspo", (-1 + 3) / 3),
        ("dr_grpo", (-3 + 3) / (3 * 10)),  # sums over 3 dialogues of at most 10 tokens
        ("dapo", (-3 + 3) / 4),  # sum over all 4 tokens
        ("bnpo", (-3 + 3) / 4),
        ("cispo", (-3 * -0.5 + 3 * -0.5) / 4),  # A logp, with logp -0.5
    ],
)
def test_each_loss_type_averages_as_its_paper_says(loss_type: str, expected: float):
    mask = np.array([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float64)
    advantages = np.array([[1.0] * 4, [-3.0] * 4, [5.0] * 4])
    logps, ones = np.full(mask.shape, -0.5), np.ones(mask.shape)
    batch = Batch(logps, logps, logps, advantages, ones, mask)
    for loss, _ in both(Rule(loss_type, 0.2, 0.2, 0.0, 10), batch):
        assert loss == pytest.approx(expected)


def test_gspo_takes_one_ratio_for_the_dialogue():
    # Changes log 2 and log 0.5 cancel out: the dialogue's ratio is 1, and no token is clipped. Each token moves by
    # half of each advantage's share: -(1 + 3) / 2 / 2 = -1.
    batch = one_row([math.log(2), math.log(0.5), 9.0], [0, 0, 0], [1, 3, 7], [1, 1, 0])
    for loss, gradient in both(Rule("gspo", 0.2, 0.2, 0.0, 10), batch):
        assert loss == pytest.approx(-2) and gradient[0] == pytest.approx([-1, -1, 0])


def test_cispo_holds_the_capped_ratio_fixed_and_keeps_every_token():
    # Ratio 4 is capped at 1 + 1 = 2 and 0.25 stays: -(2 x 3 x log 4 + 0.25 x 3 x log 0.25) / 2 = -(5.25 log 4) / 2.
    batch = one_row([math.log(4), math.log(0.25)], [0, 0], [3, 3], [1, 1])
    for loss, gradient in both(Rule("cispo", 0.2, 1.0, 0.0, 10), batch):
        assert loss == pytest.approx(-5.25 * math.log(4) / 2)
        assert gradient[0] == pytest.approx([-3, -0.375])


def test_the_divergence_is_added_whatever_the_sampler_s_ratio():
    # Reference 2 as likely as the policy: 2 - log 2 - 1 = 0.30685, slope 1 - 2 = -1; beta 0.1. The sampler's ratio 0.5
    # halves the policy's part alone: -0.5 x 1 + 0.1 x 0.30685.
    batch = one_row([-1.0], [-1.0], [1.0], [1.0])
    batch = replace(batch, ref_logps=batch.logps + math.log(2), sampler_ratios=np.full((1, 1), 0.5))
    for loss, gradient in both(Rule("grpo", 0.2, 0.2, 0.1, 10), batch):
        assert loss == pytest.approx(-0.5 + 0.1 * (1 - math.log(2)))
        assert gradient[0] == pytest.approx([-0.5 - 0.1])


@given(rule=rules(), batch=batches())
@settings(deadline=None)
def test_the_reference_s_gradient_is_the_slope_of_its_loss(rule: Rule, batch: Batch):
    """By central differences; CISPO's ratio is held fixed, so its slope is checked against TRL alone."""
    if rule.loss_type == "cispo":
        rule = replace(rule, loss_type="dapo")
    _, gradient = policy_loss(rule, batch)
    step = 1e-6
    for place in list(zip(*np.nonzero(batch.mask), strict=True))[:6]:
        sides = []
        for sign in (1, -1):
            logps = batch.logps.copy()
            logps[place] += sign * step
            sides.append(policy_loss(rule, replace(batch, logps=logps)))
        slopes = [side[1][place] for side in sides]
        if abs(slopes[0] - slopes[1]) > 0.01 * abs(gradient[place]):
            continue  # the edge of the clip lies between
        rise = (sides[0][0] - sides[1][0]) / (2 * step)
        assert rise == pytest.approx(gradient[place], rel=1e-3, abs=1e-4 * (1 + np.abs(batch.advantages).max()))


@given(rule=rules(), batch=batches(), per_row=st.booleans(), corrected=st.booleans())
@settings(deadline=None, max_examples=300)
def test_loss_and_gradient_are_the_reference_s_for_every_loss_type(
    rule: Rule, batch: Batch, per_row: bool, corrected: bool
):
    if per_row:  # one advantage, and one ratio to the sampler, for a dialogue
        columns = batch.mask.shape[1]
        alike = {
            name: np.repeat(vars(batch)[name][:, :1], columns, axis=1) for name in ("advantages", "sampler_ratios")
        }
        batch = replace(batch, **alike)
    seen = batch if corrected else replace(batch, sampler_ratios=np.ones(batch.mask.shape))
    loss, gradient = trl_loss(rule, batch, whole(batch), per_row, corrected)
    expected_loss, expected_gradient = policy_loss(rule, seen)
    assert close(loss, expected_loss)
    assert close(gradient, expected_gradient)
    assert (gradient[batch.mask == 0] == 0).all()


@given(rule=rules(), batch=batches(least_rows=2), data=st.data())
@settings(deadline=None)
def test_passes_and_ranks_add_up_to_the_loss_of_the_whole_step(rule: Rule, batch: Batch, data: st.DataObject):
    """Gradients are summed over a step's passes and averaged over ranks; bnpo alone averages within each pass."""
    rows = batch.mask.shape[0]
    parts = data.draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
    ranks = data.draw(st.sampled_from([n for n in range(1, parts + 1) if parts % n == 0]))
    size = rows // parts
    part = Part(parts // ranks, parts // ranks, ranks, batch.mask.sum())
    pieces = [batch.rows(first, first + size) for first in range(0, rows, size)]
    found = [trl_loss(rule, piece, part) for piece in pieces]
    if rule.loss_type == "bnpo":
        expected = [policy_loss(rule, piece) for piece in pieces]
        whole_loss, whole_gradient = sum(loss for loss, _ in expected) / parts, [g / parts for _, g in expected]
    else:
        whole_loss, gradient = policy_loss(rule, batch)
        whole_gradient = [gradient[first : first + size] for first in range(0, rows, size)]
    assert close(sum(loss for loss, _ in found) / ranks, whole_loss)
    assert close(np.concatenate([gradient for _, gradient in found]) / ranks, np.concatenate(whole_gradient))


@given(rule=rules(), batch=batches(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_padding_anywhere_and_the_order_of_rows_change_nothing(rule: Rule, batch: Batch, seed: int):
    rng = np.random.default_rng(seed)
    rows, columns = batch.mask.shape
    places, order = rng.integers(0, columns + 1, size=3), rng.permutation(rows)
    changed = Batch(
        **{
            name: np.insert(grid, places, 0.0 if name == "mask" else rng.normal(), axis=1)[order]
            for name, grid in vars(batch).items()
        }
    )
    loss, gradient = trl_loss(rule, batch, whole(batch))
    found, found_gradient = trl_loss(rule, changed, whole(changed))
    assert close(found, loss)
    assert close(found_gradient[changed.mask == 1], gradient[order][batch.mask[order] == 1])


@dataclass(frozen=True)
class Values:
    """What the value head's loss reads, (B, T) each."""

    values: Grid
    old_values: Grid
    returns: Grid

    def rows(self, first: int, last: int) -> Values:
        return Values(**{name: grid[first:last] for name, grid in vars(self).items()})


def our_loss(
    rule: Rule, batch: Batch, part: Part, heard: Values | None, value: ValueLoss | None
) -> tuple[float, Grid, Grid]:
    """Our trainer's loss, and its gradients (B, T) by the log-probabilities and by the values of the same pass."""
    logps = torch.tensor(batch.logps, requires_grad=True)
    values = torch.tensor(heard.values if heard else np.zeros(batch.mask.shape), requires_grad=True)
    trainer = bare_trainer(DialogueTrainer, rule, part, logps, corrected=True)
    trainer._credit, trainer._positions = ValueBased(value=value) if value else GroupRelative(2), Positions()
    trainer._passes = Passes(trainer.accelerator, None)
    trainer._heard = [torch.full_like(values, 1e6)]  # of the pass before

    def passed(*_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        trainer._heard.append(values)
        return logps, torch.zeros_like(logps), None

    trainer._get_per_token_logps_and_entropies = passed
    inputs = trl_inputs(batch, part, per_row=False)
    if heard:
        inputs |= {"old_values": torch.tensor(heard.old_values), "returns": torch.tensor(heard.returns)}
        inputs["value_mask"] = torch.tensor(batch.mask)
    loss = trainer._compute_loss(None, inputs)
    loss.backward()
    assert logps.grad is not None
    return loss.item(), logps.grad.numpy(), np.zeros(batch.mask.shape) if values.grad is None else values.grad.numpy()


@given(rule=rules(), batch=batches())
@settings(deadline=None)
def test_without_a_value_head_our_loss_is_trl_s(rule: Rule, batch: Batch):
    loss, gradient, by_values = our_loss(rule, batch, whole(batch), None, None)
    expected, expected_gradient = trl_loss(rule, batch, whole(batch))
    assert loss == expected and (gradient == expected_gradient).all() and (by_values == 0).all()


@given(rule=rules(), batch=batches(least_rows=2), data=st.data())
@settings(deadline=None)
def test_the_value_head_s_loss_is_averaged_over_the_step_s_tokens_whatever_the_policy_s_is(
    rule: Rule, batch: Batch, data: st.DataObject
):
    """On one rank or two, in one pass or several, of a rollout that is one optimizer step."""
    rows, shape = batch.mask.shape[0], batch.mask.shape
    heard = Values(*(data.draw(grids(shape, largest_power=1)) for _ in range(3)))
    value = ValueLoss(coef=data.draw(st.sampled_from([0.1, 0.5, 2.0])), clip=data.draw(st.sampled_from([0.2, 5.0])))
    parts = data.draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
    ranks = data.draw(st.sampled_from([n for n in range(1, parts + 1) if parts % n == 0]))
    size = rows // parts
    part = Part(parts // ranks, parts // ranks, ranks, batch.mask.sum())
    pieces = [(batch.rows(first, first + size), heard.rows(first, first + size)) for first in range(0, rows, size)]
    found = [our_loss(rule, piece, part, values, value) for piece, values in pieces]
    policy = [trl_loss(rule, piece, part) for piece, _ in pieces]
    losses, slopes = value_loss(heard.values, heard.old_values, heard.returns, batch.mask, value.clip)
    weight = value.coef / max(batch.mask.sum(), 1)
    beside = sum(ours[0] - theirs[0] for ours, theirs in zip(found, policy, strict=True)) / ranks
    scale = 1 + abs(sum(theirs[0] for theirs in policy))
    assert beside == pytest.approx(weight * losses.sum(), rel=1e-6, abs=1e-9 * scale)
    assert close(np.concatenate([by_values for _, _, by_values in found]) / ranks, weight * slopes)
    for ours, theirs in zip(found, policy, strict=True):
        assert (ours[1] == theirs[1]).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("epsilon_high", [None, 0.28])
def test_what_a_run_is_set_to_is_the_rule_that_its_loss_follows(
    loss_type: str, epsilon_high: float | None, tmp_path: Path
):
    """The settings' epsilon is the paper's, for each loss type: ratios stay within [1 - epsilon, 1 + epsilon_high]."""
    settings = TrainSettings(steps=1, epsilon=0.2, epsilon_high=epsilon_high, loss_type=loss_type)
    args = training_arguments(settings, tmp_path)
    rule = Rule(loss_type, 0.2, epsilon_high or 0.2, settings.beta, settings.sampling.max_context)
    changes = [math.log(ratio) for ratio in (1.0, 1.1, 1.25, 1.5, 3.0, 0.7, 0.9)]
    batch = one_row(changes, [0.0] * 7, [1, 2, 3, -1, 1, -2, 1], [1, 1, 1, 1, 1, 1, 1])
    logps = torch.tensor(batch.logps, requires_grad=True)
    trainer = bare_trainer(GRPOTrainer, rule, whole(batch), logps, corrected=True)
    trainer.loss_type, trainer.importance_sampling_level = args.loss_type, args.importance_sampling_level
    trainer.epsilon_low, trainer.beta = args.epsilon, args.beta
    trainer.epsilon_high = args.epsilon if args.epsilon_high is None else args.epsilon_high  # as TRL's constructor
    trainer.max_completion_length = args.max_completion_length
    loss = GRPOTrainer._compute_loss(trainer, None, trl_inputs(batch, whole(batch), per_row=False))
    loss.backward()
    expected, gradient = policy_loss(rule, batch)
    assert close(loss.item(), expected) and logps.grad is not None and close(logps.grad.numpy(), gradient)
