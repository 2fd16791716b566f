"""Everything of TRL, transformers and vLLM that is touched and not promised to stay, against the pinned versions."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from transformers import Trainer, TrainerCallback
from transformers.masking_utils import find_packed_sequence_indices
from trl.distributed import DistributedBackend
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, add_fused_lm_head

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
    assert ours - {"_abc_impl"} == {
        "_generate_and_score_completions",
        "_prepare_inputs",
        "_get_per_token_logps_and_entropies",
        "_compute_loss",
        "create_optimizer",
    }


def test_the_first_pass_over_likelihoods_of_a_rollout_is_that_under_the_policy():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    first = source.index("self._get_per_token_logps_and_entropies(")
    assert source[:first].rstrip().endswith("old_per_token_logps, _, _ =")
    assert source.index("ref_per_token_logps, _, _ =") > first


def test_the_loss_makes_one_pass_and_takes_an_advantage_for_each_token():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert source.count("self._get_per_token_logps_and_entropies(") == 1
    assert "if advantages.dim() == 1:" in source
    assert 'inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes' in source
    assert "self.current_gradient_accumulation_steps / self.args.steps_per_generation" in source


def test_the_likelihoods_come_out_of_the_model_s_call_one_column_short():
    source = inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)
    assert "outputs = model(**model_inputs, labels=labels, fused_lm_head=True)" in source
    assert "outputs.log_probs[:, -logits_to_keep:]" in source
    assert parameters(GRPOTrainer._get_per_token_logps_and_entropies)[:6] == [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size",
    ]  # fmt: skip
    assert "hidden_states = backbone_outputs.last_hidden_state[:, :-1]" in inspect.getsource(add_fused_lm_head)


def test_the_base_of_peft_s_model_is_called_with_its_hooks():
    assert "self.model(*args, **kwargs)" in inspect.getsource(BaseTuner.forward)


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


def test_a_pass_over_likelihoods_takes_rows_in_chunks_and_options_that_do_not_go_by_rows():
    taken = parameters(GRPOTrainer._get_per_token_logps_and_entropies)
    assert taken[:6] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    assert taken[6:8] == ["compute_entropy", "compute_aux_loss"]  # the others are a model's that sees images
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    for shared in ("shuffle_sequence_dict(", "split_tensor_dict("):
        assert shared in source  # every tensor of the batch goes along, the segments too


def test_the_micro_batches_of_a_rollout_lie_in_the_buffer_from_which_each_step_takes_its_own():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._buffered_inputs = [" in source
    assert "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]" in source


def test_a_loss_goes_backward_as_it_is_and_only_the_last_of_an_optimizer_step_is_synchronised():
    """What a pass in the middle of a micro-batch does by itself."""
    assert 'self.compute_loss_func = "non-None value to disable scaling"' in inspect.getsource(_BaseTrainer)
    source = inspect.getsource(Trainer.training_step)
    assert "self.compute_loss_func is None:" in source
    assert 'kwargs["scale_wrt_gas"] = False' in source and "self.accelerator.backward(loss, **kwargs)" in source
    assert "gradient_state._set_sync_gradients(do_sync_step)" in inspect.getsource(Trainer._run_epoch)


def test_without_an_attention_mask_positions_that_begin_again_part_a_row_into_sequences():
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]])
    found = find_packed_sequence_indices(positions)
    assert found is not None and found.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]


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
