"""The warm start: supervised training on dialogues before RL, of the adapter that RL then goes on with.

TRL's SFT trainer computes the loss: cross-entropy, averaged over all trained tokens of an optimizer step. Which tokens
these are is decided here: the ids are those that the policy sees in rollouts, and only replies are trained on.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# TRL reports its use over the network unless it is told not to, before it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from trainers.adapter_sync import write_adapter
from trainers.chat_template import Tokenizer
from trainers.quantization import quantization_config, widen_adapter
from trainers.ranks import world_size
from trainers.run_folder import MetricsLog
from trainers.train import TrainSettings, lora_config
from trainers.warm_start_config import WarmStart
from trainers.warm_start_data import METRICS, Imitation

WARM_ADAPTER = Path("adapters") / "warm_start"
UNTRAINED = -100  # the label of a token that is context
OnLine = Callable[[dict[str, Any]], None]


def warm_start(
    settings: TrainSettings,
    term: WarmStart,
    dialogues: Sequence[Imitation],
    *,
    model_dir: Path,
    run_dir: Path,
    tokenizer: Tokenizer,
    on_line: OnLine | None = None,
) -> Path:
    """Train a new adapter to say the replies of ``dialogues`` and return its folder. A collective call.

    An adapter that is there already is whole, and is returned as it is; a warm start that was cut short begins again.
    ``on_line`` sees each line of warm_start.jsonl, one for an optimizer step. Raises RunError when the adapter can't be
    written.
    """
    adapter = run_dir / WARM_ADAPTER
    if adapter.exists():
        return adapter
    trainer = SFTTrainer(
        model=str(model_dir),
        args=_arguments(settings, term, run_dir),
        train_dataset=Dataset.from_list([{"input_ids": one.ids, "labels": labels_of(one)} for one in dialogues]),
        processing_class=tokenizer,
        peft_config=lora_config(settings),
        quantization_config=quantization_config(settings.quantization, settings.dtype),
    )
    widen_adapter(trainer.model)
    if trainer.is_world_process_zero():
        (run_dir / METRICS).unlink(missing_ok=True)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Record(run_dir / METRICS, on_line))
    trainer.train()
    write_adapter(trainer, adapter)
    trainer.accelerator.free_memory()
    del trainer
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    return adapter


def labels_of(dialogue: Imitation) -> list[int]:
    """(T,): the id of a token that is trained on, -100 elsewhere."""
    return [token if ours else UNTRAINED for token, ours in zip(dialogue.ids, dialogue.mask, strict=True)]


def _arguments(settings: TrainSettings, term: WarmStart, run_dir: Path) -> SFTConfig:
    world = world_size()
    return SFTConfig(
        output_dir=str((run_dir / WARM_ADAPTER).parent),  # nothing is saved there but by us
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
        bf16=settings.dtype == "bfloat16",
        model_init_kwargs={"dtype": settings.dtype},
        gradient_checkpointing=settings.gradient_checkpointing,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=term.batch // (settings.micro_batch * world),
        num_train_epochs=term.epochs,
        learning_rate=term.learning_rate,
        lr_scheduler_type="linear",
        ddp_timeout=math.ceil(settings.rank_timeout),
        weight_decay=settings.weight_decay,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )


class _Record(TrainerCallback):
    """Writes a line of warm_start.jsonl after each optimizer step."""

    def __init__(self, path: Path, on_line: OnLine | None) -> None:
        self._path, self._on_line, self._since = path, on_line, time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """TRL's numbers under our names: ``loss`` in nats a trained token, ``tokens`` read so far, context included."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        now = time.monotonic()
        line = {
            "step": state.global_step - 1,
            "epoch": logs.get("epoch"),
            "loss": logs["loss"],
            "token_accuracy": logs.get("mean_token_accuracy"),
            "entropy": logs.get("entropy"),
            "tokens": logs.get("num_tokens"),
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "seconds": now - self._since,
        }
        self._since = now
        MetricsLog(self._path).append(line)
        if self._on_line:
            self._on_line(line)
