"""The arithmetic of the GPU benchmark, its rows, and what it says where there is no GPU."""

from __future__ import annotations

import json
from math import log

import pytest

from scripts import benchmark_gpu, training_step
from scripts.benchmark_gpu import CASES, Case, case_config, dialogue_rows, gradient_flops
from trainers.memory import KNOWN, Architecture, architecture_of

TINY = Architecture(hidden=4, layers=2, heads=2, kv_heads=1, feed_forward=8, vocabulary=10)


def test_the_flops_of_a_tiny_model_are_those_counted_by_hand() -> None:
    """Linear layers: 2 x (16 + 8 + 8 + 16 + 3 x 32) = 288 numbers; adapter of rank 3: 2 x 3 x 64 = 384.

    A row of 5 tokens, 2 of them prompt: 5 x (4 x 288 + 6 x 384) + 6 x 2 x 4 x 25 + 3 x 4 x 4 x 10.
    """
    assert gradient_flops(TINY, 3, [(2, 5)]) == 5 * 3456 + 1200 + 480
    assert gradient_flops(TINY, 3, [(2, 5), (2, 5)]) == 2 * (5 * 3456 + 1200 + 480)


def test_a_token_of_the_7b_model_takes_about_thirty_gigaflops() -> None:
    """4 x 6,525,288,448 in frozen layers, 6 x 80,740,352 in an adapter of rank 32, the rest attention and head."""
    row = gradient_flops(KNOWN["qwen2.5-7b"], 32, [(256, 2048)])
    attention, head = 6 * 28 * 3584 * 2048, 4 * 3584 * 152064 * 1792 // 2048
    assert row == 2048 * (4 * 6_525_288_448 + 6 * 80_740_352 + attention + head)
    assert row / 2048 == pytest.approx(29.7e9, rel=0.01)


def test_rows_are_dialogues_of_random_tokens() -> None:
    full = dialogue_rows(vocabulary=50, tokens=1024, rows=3, ragged=False)
    assert [len(row.ids) for row in full] == [1024] * 3
    assert [row.prompt_length for row in full] == [128] * 3
    assert sum(full[0].policy_mask) == 7 * 96
    assert set(full[0].policy_mask[:128]) == {0} and full[0].policy_mask[128] == 1
    assert all(0 < token < 50 for row in full for token in row.ids)
    assert full[0].ids != full[1].ids
    assert {logprob for logprob in full[0].logprobs if logprob} == {-log(50)}


def test_ragged_rows_go_evenly_from_half_the_length_to_all_of_it() -> None:
    lengths = [len(row.ids) for row in dialogue_rows(vocabulary=50, tokens=1024, rows=3, ragged=True)]
    assert lengths == [512, 768, 1024]


def test_a_case_is_the_shipped_configuration_at_its_own_sizes() -> None:
    config = case_config(Case(rank=32, micro_batch=4, tokens=2048, checkpointing=False), tiny=False, on_gpu=True)
    assert architecture_of(config.policy.model) is KNOWN["qwen2.5-7b"]
    assert (config.policy.dtype, config.lora.rank, config.policy.context_tokens) == ("bfloat16", 32, 2048)
    assert (config.trainer.micro_batch, config.trainer.gradient_checkpointing) == (4, False)
    assert config.trainer.cards_per_step * config.trainer.dialogues_per_card == 8
    assert config.devices.training == [0] and config.devices.engine == []


def test_without_a_gpu_it_says_so_and_every_number_is_null(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step.torch.cuda, "is_available", lambda: False)
    assert benchmark_gpu.main(["--json"]) == 0
    printed = capsys.readouterr()
    assert "there is no GPU here" in printed.err
    report = json.loads(printed.out)
    assert report["matmul_flops"] is None and report["logprobs"] is None and report["device"]["name"] is None
    assert len(report["cases"]) == len(CASES)
    assert {case["tokens_per_second"] for case in report["cases"]} == {None}


def test_a_case_that_fails_is_told_and_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(training_step, "training_steps", full)
    found = benchmark_gpu.measure(Case(8, 2, 256, True), tiny=True)
    assert found["error"] == "RuntimeError: CUDA out of memory"
    assert "tokens_per_second" not in found and found["estimate_bytes"]["base weights"] > 0
