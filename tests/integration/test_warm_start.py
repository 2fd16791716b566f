"""The warm start on a tiny random policy: what is trained, what it leaves, and how RL goes on from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.integration.test_training import SETTINGS, DyingReward, Killed, lines
from tests.tiny_policy import ByteClient, a_card, a_spec, emotion_reward, kind_templates
from trainers.adapter_sync import reference_adapter
from trainers.train import FINAL_ADAPTER, TrainSettings, lora_config, train
from trainers.trainer import DialogueTrainer
from trainers.transformers_engine import TransformersEngine
from trainers.warm_start import WARM_ADAPTER, labels_of, warm_start
from trainers.warm_start_config import WarmStart
from trainers.warm_start_data import METRICS, Example, Exchange, Imitation, imitations

TERM = WarmStart(data=["talks.jsonl"], epochs=4, batch=2, learning_rate=1e-2)
TALKS = [
    Example(f"talks.jsonl:{n}", "en", (Exchange(f"hello {n}", "that is a lot"), Exchange("and then", "that is a lot")))
    for n in range(4)
]
WEIGHTS = "adapter_model.safetensors"


def imitate(model_dir: Path, run_dir: Path, settings: TrainSettings = SETTINGS, **changes: Any) -> Path:
    templates = kind_templates(model_dir)
    dialogues = imitations(TALKS, templates, max_context=256, max_reply=32)
    term, tokenizer = TERM.model_copy(update=changes), templates["en"].tokenizer
    return warm_start(settings, term, dialogues, model_dir=model_dir, run_dir=run_dir, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def warm(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imitate(model_dir, tmp_path_factory.mktemp("warm"))


def reward_run(model_dir: Path, run_dir: Path, settings: TrainSettings = SETTINGS, **changes: Any) -> Path:
    given: dict[str, Any] = {"make_client": ByteClient, "reward": emotion_reward, **changes}
    given |= {"cards": [a_card()], "spec": a_spec(2), "templates": kind_templates(model_dir)}
    return train(settings, model_dir=model_dir, run_dir=run_dir, server=TransformersEngine(model_dir), **given)


def mean_loss(model: Any, dialogues: list[Imitation]) -> float:
    """Cross-entropy on the trained tokens, in nats, computed without the trainer."""
    losses = []
    for one in dialogues:
        ids, labels = torch.tensor([one.ids]), torch.tensor(labels_of(one))
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
        places = (labels[1:] >= 0).nonzero().flatten()
        losses += [-float(logprobs[place, labels[place + 1]]) for place in places]
    return sum(losses) / len(losses)


def test_the_first_loss_is_the_cross_entropy_of_replies_alone_and_it_falls(model_dir, warm):
    seen = lines(warm.parent.parent / METRICS)
    assert [line["step"] for line in seen] == list(range(8))  # four dialogues, two a step, four times
    dialogues = imitations(TALKS, kind_templates(model_dir), max_context=256, max_reply=32)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    assert seen[0]["loss"] == pytest.approx(mean_loss(base, dialogues), rel=0.02)  # on two of the four
    tuned = PeftModel.from_pretrained(base, str(warm))
    assert mean_loss(tuned, dialogues) < 0.7 * seen[0]["loss"]
    assert seen[0]["learning_rate"] == pytest.approx(1e-2) and seen[-1]["learning_rate"] < seen[0]["learning_rate"]


def test_context_is_not_trained_on(model_dir, tmp_path):
    nothing = [Imitation(one.ids, [0] * len(one.ids)) for one in imitations(TALKS, kind_templates(model_dir), 256, 32)]
    tokenizer = kind_templates(model_dir)["en"].tokenizer
    adapter = warm_start(SETTINGS, TERM, nothing, model_dir=model_dir, run_dir=tmp_path, tokenizer=tokenizer)
    weights = load_file(adapter / WEIGHTS)
    assert all(not weight.any() for name, weight in weights.items() if "lora_B" in name)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(model_dir, warm, tmp_path):
    first = (warm / WEIGHTS).read_bytes()
    assert (imitate(model_dir, tmp_path / "again") / WEIGHTS).read_bytes() == first
    assert (imitate(model_dir, tmp_path / "other", replace(SETTINGS, seed=1)) / WEIGHTS).read_bytes() != first


def test_a_whole_warm_start_is_kept_and_one_that_was_cut_short_begins_again(model_dir, warm, tmp_path):
    (tmp_path / "adapters" / "warm_start.tmp").mkdir(parents=True)
    (tmp_path / METRICS).write_text('{"step": 0}\n', encoding="utf-8")
    assert (imitate(model_dir, tmp_path) / WEIGHTS).read_bytes() == (warm / WEIGHTS).read_bytes()
    assert len(lines(tmp_path / METRICS)) == 8
    before = (tmp_path / METRICS).read_bytes()
    assert imitate(model_dir, tmp_path, epochs=1) == tmp_path / WARM_ADAPTER
    assert (tmp_path / METRICS).read_bytes() == before


def test_rl_goes_on_from_the_warm_start_which_is_what_its_kl_divergence_is_taken_from(model_dir, warm, tmp_path):
    seen: list[dict[str, Any]] = []
    final = reward_run(model_dir, tmp_path / "warm", start=warm, on_step=seen.append)
    start, tuned = (load_file(path / WEIGHTS) for path in (warm, final))
    assert start.keys() == tuned.keys()
    moved = max(float((start[name] - tuned[name]).abs().max()) for name in start)
    assert 0 < moved < 0.1  # six updates of at most 3e-3 each, from the warm start and not from nothing
    # Before the first update policy and reference are one, so the mean over the first step's two updates is small;
    # from the base it would be large at once.
    distances = kl_to_base(model_dir, warm)
    assert seen[0]["kl"] < 0.1 * distances
    assert seen[0]["max_logprob_difference"] < 1e-4


def kl_to_base(model_dir: Path, adapter: Path) -> float:
    """How far the adapter is from the base on the warm start's own replies: mean of exp(r) - r - 1."""
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    found = []
    for one in imitations(TALKS, kind_templates(model_dir), 256, 32):
        ids = torch.tensor([one.ids])
        with torch.no_grad():
            ours = torch.log_softmax(model(input_ids=ids).logits[0], -1)
            with model.disable_adapter():
                theirs = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        for place, mine in enumerate(one.mask[1:]):
            if mine:
                r = float(theirs[place, one.ids[place + 1]] - ours[place, one.ids[place + 1]])
                found.append(float(torch.exp(torch.tensor(r))) - r - 1)
    return sum(found) / len(found)


def test_a_warm_started_run_that_was_killed_and_resumed_ends_in_the_same_adapter(model_dir, warm, tmp_path):
    whole = reward_run(model_dir, tmp_path / "whole", start=warm) / WEIGHTS
    with pytest.raises(Killed):
        reward_run(model_dir, tmp_path / "cut", start=warm, reward=DyingReward(step=2))
    checkpoints = sorted((tmp_path / "cut" / "checkpoints").glob("checkpoint-*"))
    assert checkpoints and not any((path / "ref").exists() for path in checkpoints)
    resumed = reward_run(model_dir, tmp_path / "cut", start=warm, resume=True) / WEIGHTS
    assert resumed.read_bytes() == whole.read_bytes()
    kls = [[line["kl"] for line in lines(tmp_path / name / "metrics.jsonl")] for name in ("whole", "cut")]
    assert kls[0] == kls[1]


def test_the_reference_is_frozen_at_the_start_and_is_neither_trained_nor_written(
    model_dir, warm, tmp_path, monkeypatch
):
    kept: list[DialogueTrainer] = []
    made = DialogueTrainer.__init__

    def spy(self: DialogueTrainer, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        kept.append(self)

    monkeypatch.setattr(DialogueTrainer, "__init__", spy)
    final = reward_run(model_dir, tmp_path, replace(SETTINGS, steps=1), start=warm)
    model = cast(PeftModel, kept[0].accelerator.unwrap_model(kept[0].model))
    assert reference_adapter(model) == "ref" and model.active_adapters == ["default"]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(".default." in name for name in trained)
    start = load_file(warm / WEIGHTS)
    own = {name.replace(".ref.", "."): weight for name, weight in model.named_parameters() if ".ref." in name}
    assert own.keys() == start.keys()
    assert all(torch.equal(weight, start[name]) for name, weight in own.items())
    assert not any("ref" in path.name for path in final.rglob("*"))
    assert json.loads((final / "adapter_config.json").read_text(encoding="utf-8"))["r"] == SETTINGS.lora_rank


def test_without_a_warm_start_the_reference_is_the_base_model(model_dir):
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    assert reference_adapter(get_peft_model(base, lora_config(SETTINGS))) is None


def test_the_final_adapter_lies_beside_the_warm_start(model_dir, warm, tmp_path):
    run_dir = tmp_path / "run"
    start = imitate(model_dir, run_dir)
    reward_run(model_dir, run_dir, replace(SETTINGS, steps=1), start=start)
    assert sorted(path.name for path in (run_dir / "adapters").iterdir()) == ["final", "warm_start"]
    assert (run_dir / WARM_ADAPTER / WEIGHTS).read_bytes() == (warm / WEIGHTS).read_bytes()
    assert (run_dir / FINAL_ADAPTER / WEIGHTS).read_bytes() != (warm / WEIGHTS).read_bytes()
