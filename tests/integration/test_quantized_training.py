"""Training on a base in 8 or 4 bits. Runs where bitsandbytes is installed (the extra ``quantized``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from envs.errors import InputError
from tests.integration.test_training import SETTINGS, lines, run
from tests.integration.test_warm_start import imitate
from trainers import quantization
from trainers.quantization import Quantization, check_quantization
from trainers.train import FINAL_ADAPTER
from trainers.trainer import DialogueTrainer, Limits


def test_without_bitsandbytes_quantised_weights_are_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    check_quantization("none")
    with pytest.raises(InputError, match=r"policy.quantization: 4bit needs bitsandbytes.*pip install '.\[quantized\]'"):
        check_quantization("4bit")


@pytest.mark.parametrize(("kind", "stored"), [("8bit", torch.int8), ("4bit", torch.uint8)])
def test_an_adapter_in_fp32_is_trained_on_quantised_layers(
    kind: Quantization, stored: torch.dtype, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    types: dict[str, torch.dtype] = {}
    train = DialogueTrainer.train

    def looked_at(self: Any, **given: Any) -> Any:
        types.update({name: weight.dtype for name, weight in self.model.named_parameters()})
        return train(self, **given)

    monkeypatch.setattr(DialogueTrainer, "train", looked_at)
    settings = replace(SETTINGS, quantization=kind, limits=Limits(logprob_tolerance=20.0))
    first = run(model_dir, tmp_path / "first", settings)
    assert {types[name] for name in types if "proj.base_layer.weight" in name} == {stored}
    assert {types[name] for name in types if "lora_" in name} == {torch.float32}
    weights = load_file(tmp_path / "first" / FINAL_ADAPTER / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    seen = lines(tmp_path / "first" / "metrics.jsonl")
    assert all(line["max_logprob_difference"] > 1e-3 for line in seen)  # the sampler's weights are whole
    assert run(model_dir, tmp_path / "second", settings) == first
    further = run(model_dir, tmp_path / "further", replace(settings, steps=1), start=tmp_path / "first" / FINAL_ADAPTER)
    assert further != first and {types[name] for name in types if "lora_" in name} == {torch.float32}


def test_a_warm_start_learns_on_quantised_layers_in_fp32(model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    warm = imitate(model_dir, tmp_path, replace(SETTINGS, quantization="4bit"))
    losses = [line["loss"] for line in lines(tmp_path / "warm_start.jsonl")]
    assert losses[-1] < 0.9 * losses[0]
    assert {weight.dtype for weight in load_file(warm / "adapter_model.safetensors").values()} == {torch.float32}
