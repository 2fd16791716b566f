"""A released adapter, loaded back, answers as the evaluated one did; another adapter does not pass for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from envs.errors import RunError
from envs.trajectory import Trajectory
from tests.tiny_policy import a_card, a_spec, tiny_model, tiny_tokenizer
from trainers.chat_template import check_template
from trainers.evaluation import evaluate, read_trajectories, settings_for
from trainers.manifest import write_json
from trainers.policy import PolicySupporter, Sampling
from trainers.policy_server import PolicyServer
from trainers.release import ReleaseCheck, check_release, portable_config
from trainers.statistics import Resampling
from trainers.transformers_engine import TransformersEngine

TEMPLATE = check_template(tiny_tokenizer(), "Be kind.")
SAMPLING = Sampling(max_tokens=12, max_context=1024)


def write_adapter(model_dir: Path, folder: Path, seed: int) -> Path:
    """An adapter with random weights on both sides, so that it changes every likelihood."""
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_dir),
        LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(str(folder))
    return folder


def speak(server: PolicyServer, adapter_dir: Path, out: Path) -> list[Trajectory]:
    """Evaluate an adapter as a run does: many dialogues at once, under its own name."""
    name, spec = server.publish(adapter_dir), a_spec(2)
    settings = settings_for(spec, 3, Resampling(resamples=10))
    asyncio.run(
        evaluate(
            lambda key: PolicySupporter(server, TEMPLATE, name, key.dialogue_seed, SAMPLING),
            [a_card()],
            spec,
            settings,
            out,
        )
    )
    server.retire(name)
    return read_trajectories(out)


def answer(server: PolicyServer, folder: Path, evaluated: list[Trajectory]) -> ReleaseCheck:
    check = check_release(
        folder, server, evaluated, temperature=1.0, max_tokens=12, stop_ids=(TEMPLATE.end_of_turn,), replies=6
    )
    return asyncio.run(check)


def check_both(server: PolicyServer, model_dir: Path, folder: Path) -> None:
    evaluated_dir = write_adapter(model_dir, folder / "run" / "adapters" / "final", seed=1)
    evaluated = speak(server, evaluated_dir, folder / "evaluation")
    released = folder / "release"
    released.mkdir()
    config = json.loads((evaluated_dir / "adapter_config.json").read_text())
    write_json(released / "adapter_config.json", portable_config(config, {"name": "tiny"}))
    (released / "adapter_model.safetensors").write_bytes((evaluated_dir / "adapter_model.safetensors").read_bytes())
    check = answer(server, released, evaluated)
    assert (check.replies, check.same) == (6, 6)
    assert check.max_logprob_difference is not None and check.max_logprob_difference < 1e-4
    with pytest.raises(RunError, match="does not answer as the evaluated adapter did"):
        answer(server, write_adapter(model_dir, folder / "stranger" / "adapter", seed=2), evaluated)


def test_a_released_adapter_answers_as_it_was_evaluated_and_another_does_not(tmp_path: Path) -> None:
    model_dir = tiny_model(tmp_path / "model")
    check_both(TransformersEngine(model_dir), model_dir, tmp_path)
