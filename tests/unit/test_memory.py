from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainers.config import RunConfig
from trainers.config_file import load_config
from trainers.memory import (
    GIB,
    KNOWN,
    Architecture,
    ArchitectureUnknown,
    architecture_of,
    estimate_memory,
    row_tokens,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = Architecture(hidden=4, layers=2, heads=2, kv_heads=1, feed_forward=8, vocabulary=10)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def config(**sections: object) -> RunConfig:
    trainer = {"micro_batch": 2, "minibatches": 1}
    policy = {"context_tokens": 100, "max_new_tokens": 10}
    return RunConfig.model_validate({"trainer": trainer, "policy": policy, "lora": {"rank": 3}, **sections})


def test_the_parameters_of_a_tiny_model_are_those_counted_by_hand() -> None:
    """A block: q 16, k 8, v 8, o 16, gate 32, up 32, down 32, biases 4 + 2 + 2, norms 8; ends 40 + 40, norm 4."""
    assert TINY.parameters == 2 * (144 + 8 + 8) + 40 + 40 + 4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-72b", 72_706_203_648),
        ("llama-3.1-8b", 8_030_261_248),
    ],
)
def test_known_models_have_their_published_number_of_parameters(name: str, parameters: int) -> None:
    assert KNOWN[name].parameters == parameters


def test_an_adapter_has_rank_times_inputs_plus_outputs_of_each_layer() -> None:
    """Inputs + outputs in one block: q 8, k 6, v 6, o 8, gate 12, up 12, down 12."""
    assert TINY.adapter_parameters(3, "all-linear") == 2 * 3 * 64
    assert TINY.adapter_parameters(3, ["q_proj", "v_proj"]) == 2 * 3 * 14


def test_the_adapter_of_the_7b_model_at_rank_16_has_forty_million_parameters() -> None:
    """28 layers x 16 x (7168 + 2 x 4096 + 7168 + 3 x 22528)."""
    assert KNOWN["qwen2.5-7b"].adapter_parameters(16, "all-linear") == 28 * 16 * 90_112 == 40_370_176


def test_keys_and_values_of_the_7b_model_take_56_kib_a_token() -> None:
    assert KNOWN["qwen2.5-7b"].cache_bytes(2) == 2 * 28 * 512 * 2 == 56 * 1024


def test_a_row_of_segments_is_as_long_as_evenly_growing_turns_make_it() -> None:
    """Four turns that grow evenly to 100 tokens: 25 + 50 + 75 + 100 = 250."""
    assert row_tokens(config()) == 100
    thinking = {"format": "think", "format_required": True, "context_tokens": 100, "max_new_tokens": 10}
    assert row_tokens(config(policy=thinking, dialogue={"max_turns": 4})) == 250
    packed = estimate_memory(config(policy=thinking, dialogue={"max_turns": 4}), TINY)[0].parts
    plain = estimate_memory(config(policy={"context_tokens": 250, "max_new_tokens": 10}), TINY)[0].parts
    assert packed["activations"] == plain["activations"] and packed["logits"] == plain["logits"]


def test_a_training_device_holds_what_the_formulas_say() -> None:
    [device] = estimate_memory(config(devices={"training": [0]}), TINY)
    adapter = 2 * 3 * 64
    kept = 4 * (2 * 4 + 4 * 4 + 4 * 8 + 7 * 3 + 100) + 8 * 4  # bytes of one layer and token
    widest = 2 * 4 * 8
    assert device.name == "GPU 0"
    assert device.parts == {
        "base weights": 404 * 4,
        "adapter": 4 * adapter,
        "gradients": 4 * adapter,
        "optimizer": 8 * adapter,
        "activations": 2 * 100 * (2 * kept + widest),
        "logits": 4 * 200 * 32768 + 4 * 4 * 200,
        "runtime": 3 * GIB // 2,
    }
    assert device.fits is None


def test_checkpointing_keeps_one_layer_and_the_inputs_of_the_others() -> None:
    settings = {"micro_batch": 2, "minibatches": 1, "gradient_checkpointing": True}
    [device] = estimate_memory(config(devices={"training": [0]}, trainer=settings), TINY)
    kept = 4 * 177 + 32
    assert device.parts["activations"] == 200 * (2 * 4 * 4 + kept + 2 * 4 * 8)


def test_a_pass_of_so_many_tokens_bounds_the_activations_but_never_below_one_dialogue() -> None:
    """Eight dialogues of 100 tokens in passes of at most 250."""
    settings = {"micro_batch": 8, "minibatches": 1}
    bounded = config(devices={"training": [0]}, trainer={**settings, "micro_batch_tokens": 250})
    kept = 4 * 177 + 32
    assert estimate_memory(bounded, TINY)[0].parts["activations"] == 250 * (2 * kept + 2 * 4 * 8)
    thinking = {"format": "think", "format_required": True, "context_tokens": 100, "max_new_tokens": 10}
    four = {"policy": thinking, "dialogue": {"max_turns": 4}}
    [alone] = estimate_memory(config(trainer={"micro_batch": 1, "minibatches": 1}, **four), TINY)
    [longer] = estimate_memory(config(trainer={**settings, "micro_batch_tokens": 200}, **four), TINY)
    assert longer.parts["activations"] == alone.parts["activations"]  # of 250 tokens


@pytest.mark.parametrize(("quantization", "of_a_weight"), [("8bit", 1.0), ("4bit", 0.5 + 1 / 64 + 4 / (64 * 256))])
def test_quantised_weights_are_those_of_the_blocks_and_the_engine_s_stay_whole(
    quantization: str, of_a_weight: float
) -> None:
    """2 x 144 numbers in the blocks' linear layers, of 404 in all; the widest layer has 32."""
    policy = {"context_tokens": 100, "max_new_tokens": 10, "quantization": quantization}
    trainer = {"micro_batch": 2, "minibatches": 1, "logprob_tolerance": 0.5}
    devices = {"training": [0], "engine": [0]}
    [device] = estimate_memory(config(devices=devices, policy=policy, trainer=trainer), TINY)
    assert device.parts["base weights"] == (404 - 288 + 32) * 4 + round(288 * of_a_weight)
    assert device.parts["engine weights"] == 404 * 4


def test_in_bf16_the_adapter_has_a_copy_and_the_rest_is_half_as_wide() -> None:
    policy = {"context_tokens": 100, "max_new_tokens": 10, "dtype": "bfloat16"}
    trainer = {"micro_batch": 2, "minibatches": 1, "logprob_tolerance": 1}
    [device] = estimate_memory(config(devices={"training": [0]}, policy=policy, trainer=trainer), TINY)
    kept = 2 * (2 * 4 + 4 * 4 + 4 * 8 + 7 * 3 + 100) + 8 * 4
    assert device.parts["adapter"] == 6 * 2 * 3 * 64
    assert device.parts["activations"] == 200 * (2 * kept + 2 * 2 * 8)
    assert device.parts["logits"] == 2 * 200 * 32768 + 4 * 4 * 200


def test_the_head_s_tile_does_not_grow_with_the_batch_and_is_as_wide_as_the_words_on_a_cpu() -> None:
    """4096 tokens fill a tile; on a CPU eight fp32 tensors of 4096 x 10."""
    trainer = {"micro_batch": 64, "minibatches": 1, "cards_per_step": 8}
    [card] = estimate_memory(config(devices={"training": [0]}, trainer=trainer), TINY)
    assert card.parts["logits"] == 4 * 4096 * 32768 + 4 * 4 * 6400
    [here] = estimate_memory(config(trainer=trainer), TINY)
    assert here.parts["logits"] == 8 * 4 * 4096 * 10 + 4 * 4 * 6400


@pytest.mark.parametrize(("dtype", "each"), [("float32", 4), ("bfloat16", 2)])
def test_a_layer_keeps_for_the_backward_pass_what_the_formula_counts(dtype: str, each: int) -> None:
    """What torch saves for one layer more, less what the formula leaves out.

    That is the norms' divisors (2 x 4 bytes a token), attention's sums (4 for each head), and in bf16 the copy of the
    layer's adapter, which stands with the adapter.
    """
    sizes = Architecture(hidden=64, layers=1, heads=4, kv_heads=2, feed_forward=160, vocabulary=50)
    rows, row, rank = 4, 48, 8
    more = saved_bytes(replace(sizes, layers=2), dtype, rows, row, rank) - saved_bytes(sizes, dtype, rows, row, rank)
    copies = 0 if each == 4 else each * sizes.adapter_parameters(rank, "all-linear")
    assert more == rows * row * (sizes.activation_bytes(each, rank, row) + 8 + 4 * 4) + copies


def saved_bytes(sizes: Architecture, dtype: str, rows: int, row: int, rank: int) -> int:
    """Bytes that torch keeps between forward and backward of a padded batch, weights not counted."""
    import torch
    from peft import LoraConfig, get_peft_model

    from scripts.training_step import random_model
    from trainers.trainer import compute_without_copies

    lora = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(random_model(sizes, dtype, row, on="cpu"), lora)
    compute_without_copies(model)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mask = torch.ones(rows, row, dtype=torch.long)
    mask[0, :3] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        backbone: Any = model.get_base_model().base_model
        hidden = backbone(input_ids=torch.ones(rows, row, dtype=torch.long), attention_mask=mask, use_cache=False)
    assert hidden.last_hidden_state.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(("stage", "parts"), [(2, {}), (3, {"base weights": 2 / 3, "adapter": 2})])
def test_zero_shares_out_gradients_and_optimizer_and_at_stage_3_weights(stage: int, parts: dict[str, float]) -> None:
    """At stage 3 a model as small as this may stand whole beside its shares."""
    file = f"configs/deepspeed/zero{stage}.json"
    two = {"devices": {"training": [0, 1]}, "engine": {"port": 8123}}
    plain = config(**two)
    shared = config(**two, trainer={"micro_batch": 2, "minibatches": 1, "deepspeed": file})
    before, after = estimate_memory(plain, TINY)[0].parts, estimate_memory(shared, TINY)[0].parts
    assert {part: before[part] / after[part] for part in before if before[part] != after[part]} == {
        "gradients": 2,
        "optimizer": 2,
        **parts,
    }


def test_the_cache_gets_what_is_left_of_the_engines_share() -> None:
    """0.5 of 4 GiB, less weights (404 x 4), 4 adapter slots (384 x 4 each) and the runtime."""
    shared = config(devices={"training": [0], "engine": [0], "memory_gib": 4}, engine={"gpu_memory_utilization": 0.5})
    [device] = estimate_memory(shared, TINY)
    assert device.parts["KV cache"] == 2 * GIB - 404 * 4 - 4 * 384 * 4 - 3 * GIB // 2
    per_token = 2 * 2 * 2 * 4
    assert device.notes == [
        f"the KV cache holds {device.parts['KV cache'] // (per_token * 100)} dialogues of 100 tokens; 32 run at once"
    ]
    assert device.fits


def test_tensor_parallel_devices_share_weights_and_cache() -> None:
    """Of unknown memory the cache is all that is needed: 32 x 100 tokens x 2 x 2 layers x 4 wide x 4 bytes / 2."""
    wide = Architecture(hidden=4, layers=2, heads=2, kv_heads=2, feed_forward=8, vocabulary=10)
    split = config(devices={"training": [0], "engine": [1, 2]}, engine={"tensor_parallel": 2})
    trains, serves, serves_too = estimate_memory(split, wide)
    assert serves.parts == serves_too.parts
    assert serves.parts["engine weights"] == wide.parameters * 4 // 2
    assert serves.parts["KV cache"] == 32 * 100 * 2 * 2 * 4 * 4 // 2
    assert "base weights" not in serves.parts and "KV cache" not in trains.parts


def test_an_engine_whose_share_is_too_small_does_not_fit_and_says_what_to_raise() -> None:
    small = config(devices={"training": [0], "engine": [0], "memory_gib": 4}, engine={"gpu_memory_utilization": 0.1})
    [device] = estimate_memory(small, TINY)
    assert device.fits is False
    assert device.notes[0].endswith("raise engine.gpu_memory_utilization")


def test_a_model_too_large_for_its_device_does_not_fit() -> None:
    on_one = load_config(ROOT / "configs/grpo_qwen2.5_7b.yaml", ["policy.model=Qwen/Qwen2.5-72B-Instruct"])
    assert estimate_memory(on_one, architecture_of(on_one.policy.model))[0].fits is False


@pytest.mark.parametrize(
    "name",
    ["grpo_qwen2.5_7b", "grpo_qwen2.5_7b_8gpu", "ppo_qwen2.5_7b", "ppo_think_qwen2.5_7b", "grpo_kardia_qwen2.5_7b"],
)
def test_the_shipped_gpu_configs_fit_and_hold_enough_dialogues(name: str) -> None:
    shipped = load_config(ROOT / f"configs/{name}.yaml")
    estimates = estimate_memory(shipped, architecture_of(shipped.policy.model))
    assert len(estimates) == len({*shipped.devices.training, *shipped.devices.engine})
    assert all(device.fits for device in estimates)
    assert estimates[-1].parts["KV cache"] > 32 * 4096 * 56 * 1024 / shipped.engine.tensor_parallel


def test_without_gpus_one_estimate_is_for_this_machine() -> None:
    [device] = estimate_memory(config(), TINY)
    assert device.name == "this machine"
    assert device.parts["KV cache"] == GIB
    [lean] = estimate_memory(config(engine={"kind": "transformers"}), TINY)
    assert "KV cache" not in lean.parts


def test_each_server_on_a_cpu_takes_its_memory() -> None:
    [one], [three] = (estimate_memory(config(engine={"replicas": n}), TINY) for n in (1, 3))
    engine = ("engine weights", "adapter slots", "KV cache", "engine runtime")
    assert [three.parts[part] / one.parts[part] for part in engine] == [3] * 4
    assert {part: one.parts[part] for part in one.parts if part not in engine}.items() <= three.parts.items()


def test_dialogues_are_shared_out_between_the_servers_on_gpus() -> None:
    """Of unknown memory each holds half of the 32 dialogues of 100 tokens: 16 x 100 x 32 bytes, which both tell of."""
    two = config(devices={"training": [0], "engine": [1, 2]}, engine={"replicas": 2})
    _, serves, serves_too = estimate_memory(two, TINY)
    assert serves.parts == serves_too.parts and serves.parts["engine weights"] == 404 * 4
    assert serves.parts["KV cache"] == 16 * 100 * 32
    assert serves.notes == ["the KV cache holds 32 dialogues of 100 tokens; 32 run at once"]


def test_a_folder_tells_its_architecture(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 8, "vocab_size": 10}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "model_type": "qwen2"}), encoding="utf-8")
    assert architecture_of(str(tmp_path)) == TINY
    del sizes["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    with pytest.raises(ArchitectureUnknown, match="lacks vocab_size"):
        architecture_of(str(tmp_path))


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B", "me/qwen2.5-7b-tuned"])
def test_a_known_id_is_recognised_whatever_stands_around_it(name: str) -> None:
    assert architecture_of(name) is KNOWN["qwen2.5-7b"]
    assert architecture_of("meta-llama/Meta-Llama-3.1-8B-Instruct") is KNOWN["llama-3.1-8b"]


@pytest.mark.parametrize(
    ("name", "why"), [("acme/gpt-9", "not among qwen2.5-0.5b"), ("Qwen/Qwen2.5-7B-Instruct-AWQ", "quantised")]
)
def test_an_unknown_model_is_told_with_what_would_help(name: str, why: str) -> None:
    with pytest.raises(ArchitectureUnknown, match=why):
        architecture_of(name)


def test_mixtures_of_experts_are_not_guessed_at(tmp_path: Path) -> None:
    sizes = dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"), 8
    )
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "num_experts": 8}), encoding="utf-8")
    with pytest.raises(ArchitectureUnknown, match="mixtures of experts"):
        architecture_of(str(tmp_path))
