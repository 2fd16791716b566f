"""Rows of like length together, and passes within a token budget: the same loss, gradients and numbers as without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback

from scripts.benchmark_gpu import dialogue_rows
from scripts.training_step import random_trainer
from trainers.background import BackgroundLoop
from trainers.credit import CreditAssigner, GroupRelative, ValueBased, ValueLoss
from trainers.memory import Architecture
from trainers.micro_batches import BY_PASS, Passed, arranged, passes, put_back, taken
from trainers.packing import restarting
from trainers.policy import Sampling
from trainers.samples import Sample
from trainers.train import TrainSettings
from trainers.trainer import Limits

SIZES = Architecture(hidden=32, layers=2, heads=2, kv_heads=1, feed_forward=48, vocabulary=40)
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")


def padded(lengths: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The mask of rows with so many prompt and completion tokens, as TRL pads them."""
    before, after = (max(one[side] for one in lengths) for side in (0, 1))
    return torch.tensor([[0] * (before - p) + [1] * (p + c) + [0] * (after - c) for p, c in lengths])


def test_rows_of_like_length_go_together_and_leave_their_padding_behind():
    mask = padded([(2, 3), (4, 9), (1, 2), (3, 9)])  # P = 4, C = 9
    assert passes(mask, 4, most_rows=2) == [Passed((1, 3), 0, 13), Passed((0, 2), 2, 7)]


def test_a_pass_holds_no_more_tokens_than_it_may_and_a_longer_row_goes_alone():
    mask = padded([(2, 8), (2, 2), (2, 3), (2, 2)])
    found = passes(mask, 2, most_rows=4, most_tokens=9)
    assert found == [Passed((0,), 0, 10), Passed((2,), 0, 5), Passed((1, 3), 0, 4)]
    assert [one.tokens for one in found] == [10, 5, 8]


def test_a_rank_makes_room_for_the_longer_rows_of_another_at_the_same_place():
    """The other's rows end 8, 3 and 1 after the prompt, ours 2, 4 and 3; 10 tokens hold two of theirs at the end."""
    found = passes(padded([(1, 2), (2, 4), (2, 3)]), 2, 3, 10, widest=lambda ends: [(-2, 8), (-2, 3), (-1, 3)])
    assert found == [Passed((1,), 0, 6), Passed((2, 0), 0, 5)]
    seen: list[tuple[int, int]] = []
    passes(padded([(1, 2), (2, 4), (2, 3)]), 2, 3, 10, widest=lambda ends: seen.extend(ends) or ends)
    assert seen == [(-2, 4), (-2, 3), (-1, 2)]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=12),
    most_rows=st.integers(1, 12),
    most_tokens=st.one_of(st.none(), st.integers(1, 60)),
)
def test_every_row_is_in_one_pass_with_all_its_tokens(
    lengths: list[tuple[int, int]], most_rows: int, most_tokens: int | None
):
    mask, prompt = padded(lengths), max(p for p, _ in lengths)
    found = passes(mask, prompt, most_rows, most_tokens)
    assert sorted(row for one in found for row in one.rows) == list(range(len(lengths)))
    for one in found:
        assert one.of(mask).sum() == mask[list(one.rows)].sum()
        assert len(one.rows) == 1 or (len(one.rows) <= most_rows and one.tokens <= (most_tokens or math.inf))
    numbers = torch.arange(mask.numel()).view(mask.shape) * mask
    back = put_back([one.of(numbers)[:, prompt - one.first :] for one in found], found, mask[:, prompt:])
    assert (back == numbers[:, prompt:]).all()


def test_a_row_s_part_of_everything_goes_with_it_and_segments_keep_their_positions():
    segments = torch.tensor([[0, 1, 1, 2, 2, -1], [1, 1, 1, 1, 1, 1]])
    batch = {
        "prompt_ids": torch.tensor([[0, 5], [6, 7]]),
        "completion_ids": torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]]),
        "advantages": torch.tensor([0.5, -0.5]),
        "importance_sampling_ratio": torch.ones(2, 1),
        "segments": segments,
        "num_items_in_batch": torch.tensor(7),
    }
    part = taken(batch, Passed((0,), 1, 5))
    assert part["prompt_ids"].tolist() == [[5]] and part["completion_ids"].tolist() == [[1, 2, 3]]
    assert part["advantages"].tolist() == [0.5] and part["importance_sampling_ratio"].shape == (1, 1)
    assert part["num_items_in_batch"] == 7
    assert restarting(part["segments"]).tolist() == [[0, 1, 0, 1]] == restarting(segments[:1, 1:5]).tolist()


def test_each_minibatch_keeps_its_rows_and_has_them_in_order():
    mask = padded([(1, 2), (1, 5), (1, 3), (1, 4), (1, 1), (1, 6), (1, 1), (1, 2)])
    whole = {"prompt_ids": mask[:, :1], "prompt_mask": mask[:, :1]}
    whole |= {"completion_ids": mask[:, 1:], "completion_mask": mask[:, 1:], "row": torch.arange(8)}
    drawn = [{key: value[first : first + 2] for key, value in whole.items()} for first in range(0, 8, 2)]
    found = arranged(drawn, 2, by_length=True)
    assert [one["row"].tolist() for one in found] == [[1, 3], [2, 0], [5, 7], [4, 6]]
    assert [one["completion_ids"].size(1) for one in found] == [5, 3, 6, 1]
    kept = arranged(drawn, 2, by_length=False)
    assert [one["row"].tolist() for one in kept] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [one["completion_ids"].size(1) for one in kept] == [5, 4, 6, 2]


class Seen(TrainerCallback):
    """The gradients of the last optimizer step, and what was logged of it."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.logged: dict[str, float] = {}

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
        self.gradients = {name: grad.clone() for name, grad in found.items() if grad is not None}

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.logged = {
                key: value for key, value in logs.items() if "time" not in key and not key.startswith("completions/")
            }


def settings(loss_type: str, **changes: Any) -> TrainSettings:
    given: dict[str, Any] = {"cards_per_step": 1, "group_size": 8, "micro_batch": 4, "minibatches": 1}
    given |= {
        "beta": 0.1,
        "max_grad_norm": 1e9,
        "limits": Limits(1e9),
        "sampling": Sampling(max_tokens=16, max_context=320),
    }
    return TrainSettings(steps=1, loss_type=loss_type, **given | changes)


def one_step(
    given: TrainSettings, run_dir: Path, credit: CreditAssigner, samples: Sequence[Sample] | None = None
) -> tuple[Seen, list[str]]:
    """One optimizer step of the real trainer after the policy has moved; also the course of its passes."""
    samples = samples or dialogue_rows(SIZES.vocabulary, 256, 8, ragged=True)
    seen, course = Seen(), []
    with BackgroundLoop() as loop:
        trainer = random_trainer(given, SIZES, samples, run_dir, loop, credit)
        moved(trainer)
        trainer.add_callback(seen)
        assert trainer.model is not None
        trainer.model.register_forward_hook(
            lambda module, args, given, output: course.append(
                f"{'forward' if torch.is_grad_enabled() else 'likelihoods'} {given['input_ids'].numel()}"
            ),
            with_kwargs=True,
        )
        backward = trainer.accelerator.backward
        trainer.accelerator.backward = lambda loss, **kw: (course.append("backward"), backward(loss, **kw))[1]
        trainer.train()
    return seen, course


def moved(trainer: Any) -> None:
    """Make likelihoods differ from the rollout's, as after updates, so that ratios, clips and divergence tell."""
    produce = trainer._generate_and_score_completions

    def shifted(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch, random = produce(inputs), torch.Generator().manual_seed(1)
        sizes = {"old_per_token_logps": 0.2, "ref_per_token_logps": 0.5, "advantages": 1.0}
        if "value_mask" in batch:  # no turn was played, so none is credited yet
            batch["value_mask"] = (batch["completion_mask"] * batch["tool_mask"]).bool()
            sizes |= {"old_values": 0.3, "returns": 1.0}
        for key in (key for key in sizes if key in batch):
            batch[key] = batch[key] + sizes[key] * torch.randn(batch[key].shape, generator=random)
        batch["old_per_token_logps"] += torch.linspace(0.4, -0.4, len(batch["prompt_ids"])).unsqueeze(1)
        return batch

    trainer._generate_and_score_completions = shifted
    if trainer.value_head:
        torch.nn.init.normal_(trainer.value_head.weights[0], generator=torch.Generator().manual_seed(2))


def differences(one: Seen, other: Seen) -> list[str]:
    """The gradients and logged numbers in which two optimizer steps differ by more than rounding."""
    largest = max((float(gradient.abs().max()) for gradient in one.gradients.values()), default=0.0)
    if not largest:
        return ["there is no gradient"]
    names = [*(one.gradients.keys() ^ other.gradients.keys()), *(one.logged.keys() ^ other.logged.keys())]
    for name in one.gradients.keys() & other.gradients.keys():
        if not float((one.gradients[name] - other.gradients[name]).abs().max()) < 1e-4 * largest:
            names.append(name)
    for name in one.logged.keys() & other.logged.keys():
        if other.logged[name] != pytest.approx(one.logged[name], rel=1e-3, abs=1e-6):
            names.append(name)
    return names


PPO = ValueBased(value=ValueLoss())


@pytest.mark.parametrize(
    ("loss_type", "credit"), [*((loss_type, GroupRelative(8)) for loss_type in LOSSES), ("dapo", PPO), ("grpo", PPO)]
)
def test_passes_within_a_budget_give_the_gradients_and_numbers_of_one(
    loss_type: str, credit: CreditAssigner, tmp_path: Path
):
    whole, course = one_step(settings(loss_type), tmp_path / "whole", credit)
    assert course[-4:] == ["forward 1024", "backward", "forward 728", "backward"] or loss_type == BY_PASS
    parted, course = one_step(settings(loss_type, limits=Limits(1e9, pass_tokens=600)), tmp_path / "parted", credit)
    assert differences(whole, parted) == []
    taken_there = [int(line.split()[1]) for line in course if line != "backward"]
    assert max(taken_there) <= 600
    assert whole.logged["clip_ratio/region_mean" if loss_type != "cispo" else "cispo_clip_ratio"] > 0
    assert credit.value is None or whole.logged["value_loss"] > 0
    # A pass's activations are gone before the next one's are made.
    forward = course[next(place for place, line in enumerate(course) if line.startswith("forward")) :]
    assert {line.split()[0] for line in forward[::2]} == {"forward"} and set(forward[1::2]) == {"backward"}
    assert len(forward) > 4


@pytest.mark.parametrize("loss_type", [loss_type for loss_type in LOSSES if loss_type != BY_PASS])
def test_micro_batches_of_any_size_give_the_gradients_and_numbers_of_the_whole_minibatch(
    loss_type: str, tmp_path: Path
):
    whole, _ = one_step(settings(loss_type, micro_batch=8), tmp_path / "whole", GroupRelative(8))
    halves, _ = one_step(settings(loss_type, micro_batch=2), tmp_path / "parts", GroupRelative(8))
    assert differences(whole, halves) == []


def test_rows_of_segments_give_the_same_in_passes_too(tmp_path: Path):
    rows = [
        replace(sample, starts=(0, sample.prompt_length + 20))
        for sample in dialogue_rows(SIZES.vocabulary, 128, 8, ragged=True)
    ]
    given = settings("grpo")
    whole, _ = one_step(given, tmp_path / "whole", GroupRelative(8), rows)
    parted, _ = one_step(
        replace(given, limits=Limits(1e9, pass_tokens=200)), tmp_path / "parted", GroupRelative(8), rows
    )
    assert differences(whole, parted) == []
