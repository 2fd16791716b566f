"""Everything of TRL, transformers and vLLM that is touched and not promised to stay, against the pinned versions."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import Trainer, TrainerCallback
from trl.distributed import DistributedBackend
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from scripts.training_step import random_model
from trainers.adapter_sync import REFERENCE, AdapterSync
from trainers.memory import TILE_TOKENS, TILE_WORDS, Architecture
from trainers.trainer import DialogueTrainer, compute_without_copies


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_pinned_version_of_trl_is_installed():
    assert version("trl") == "1.16.0"


def test_the_method_we_override_takes_the_rows_and_returns_the_batch():
    assert parameters(GRPOTrainer._generate_and_score_completions) == ["self", "inputs"]
    assert DialogueTrainer._generate_and_score_completions is not GRPOTrainer._generate_and_score_completions


def test_nothing_else_of_trl_is_overridden():
    ours = {name for name in vars(DialogueTrainer) if hasattr(GRPOTrainer, name) and not name.startswith("__")}
    assert ours - {"_abc_impl"} == {"_generate_and_score_completions"}


def test_the_trainer_syncs_weights_through_the_object_that_we_put_there_and_only_when_they_changed():
    source = inspect.getsource(GRPOTrainer._generate)
    assert "self.vllm_generation.sync_weights()" in source
    assert "self.state.global_step != self._last_loaded_step" in source
    assert "self.rollout_func(prompts, self)" in source
    assert 'extra_fields.pop("env_mask", None)' in source
    assert parameters(AdapterSync.sync_weights) == ["self"]
    assert source.count("vllm_generation") == 1
    assert "vllm_generation" not in inspect.getsource(GRPOTrainer._generate_and_score_completions)


def test_the_rollout_function_and_the_rewards_are_taken_by_the_constructor():
    assert {"reward_funcs", "rollout_func", "peft_config", "processing_class", "train_dataset"} <= set(
        parameters(GRPOTrainer.__init__)
    )


def test_likelihoods_of_sampler_and_trainer_come_back_with_the_batch():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for key in ("old_per_token_logps", "sampling_per_token_logps", "tool_mask", "completion_mask", "advantages"):
        assert f'"{key}"' in source
    assert "self.use_vllm and self.vllm_importance_sampling_correction" in source


def test_the_loss_counts_only_tokens_under_completion_and_tool_mask():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'completion_mask * inputs["tool_mask"]' in source


def test_parameters_are_gathered_by_the_distributed_backend():
    assert parameters(DistributedBackend.gather_params) == ["self", "params"]
    assert "self._dist = DistributedBackend(self.accelerator)" in inspect.getsource(GRPOTrainer.__init__)


def test_a_model_with_an_adapter_gets_a_frozen_copy_of_it_as_the_reference():
    assert f'model.add_adapter("{REFERENCE}", default_config)' in inspect.getsource(GRPOTrainer.__init__)
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert f'adapter_name="{REFERENCE}" if "{REFERENCE}" in model.peft_config else None' in source


def test_a_checkpoint_with_an_adapter_in_a_folder_of_its_own_would_not_give_back_the_trained_one():
    """Why the reference's folder is taken out of a checkpoint before it counts as complete."""
    source = inspect.getsource(Trainer._load_from_checkpoint)
    assert "if adapter_subdirs:" in source and source.count("model.load_adapter(") == 2


def test_labels_that_come_with_the_dialogues_are_what_the_imitation_is_trained_on():
    source = inspect.getsource(SFTTrainer.__init__)
    assert 'args.dataset_kwargs.get("skip_prepare_dataset", False)' in source
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(
        [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5, 8], "labels": [-100, 8]}]
    )
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 8, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_the_config_has_the_fields_that_we_set():
    fields = set(inspect.signature(GRPOConfig).parameters)
    assert {
        "steps_per_generation",
        "num_iterations",
        "num_generations",
        "loss_type",
        "beta",
        "epsilon",
        "shuffle_dataset",
    } <= fields


def test_a_checkpoint_is_announced_after_all_its_files_are_written():
    source = inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert source.index("self._save_checkpoint(") < source.index("self.callback_handler.on_save(")
    assert source.index("self.log(") < source.index("self._save_checkpoint(")
    assert callable(TrainerCallback.on_save) and callable(TrainerCallback.on_log)


def test_the_head_works_in_tiles_of_the_size_that_the_memory_estimate_knows():
    assert TOKEN_CHUNK_SIZE == TILE_TOKENS
    assert _CHUNKED_LOGPROB_CHUNK_SIZE == TILE_WORDS
    assert "add_fused_lm_head(" in inspect.getsource(GRPOTrainer.__init__)


def test_an_adapter_layer_asks_whether_its_input_is_to_be_widened():
    assert '"cast_input_dtype_enabled"' in inspect.getsource(BaseTunerLayer._cast_input_dtype)


def test_under_autocast_a_widened_input_gives_the_same_output_to_the_last_bit():
    torch.manual_seed(0)
    sizes = Architecture(hidden=64, layers=2, heads=4, kv_heads=2, feed_forward=160, vocabulary=50)
    lora = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(random_model(sizes, "bfloat16", 16, on="cpu"), lora)
    weights = [weight.dtype for weight in model.parameters() if weight.requires_grad]
    assert set(weights) == {torch.float32}
    ids = torch.arange(16).unsqueeze(0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        widened = model(input_ids=ids).logits
        compute_without_copies(model)
        assert torch.equal(model(input_ids=ids).logits, widened)
