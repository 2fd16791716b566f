"""What a run leaves on disk at each step: its metrics, and checkpoints that can be told complete from torn."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.distributed import DistributedBackend

from envs.errors import InputError
from trainers import peak_memory
from trainers.adapter_sync import REFERENCE
from trainers.rollout_queue import Version
from trainers.run_files import CHECKPOINTS, COMPLETE, METRICS, append_lines, keep_lines
from trainers.run_folder import MetricsLog
from trainers.run_numbers import step_of
from trainers.scoring import JUDGMENTS
from trainers.trainer import SCORES, TRAJECTORIES, DialogueTrainer, OnStep, updates_per_rollout
from trainers.usage import USAGE
from trainers.watching import ALARMS, Watcher

BEGUN = "begun"  # in a checkpoint: for each step whose dialogues were in flight, the adapter that samples them
# Ours <- TRL's names for what it measures while it updates.
UPDATE_METRICS = {
    "loss": "loss",
    "kl": "kl",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "clip_rate": "clip_ratio/region_mean",
}
# The same, of a run with a value head.
VALUE_METRICS = {"value_loss": "value_loss", "explained_variance": "explained_variance"}


class RunRecord(TrainerCallback):
    """Writes a line of metrics.jsonl after each step's updates, and marks checkpoints complete."""

    def __init__(
        self, trainer: DialogueTrainer, run_dir: Path, on_step: OnStep | None, watcher: Watcher | None = None
    ) -> None:
        self._trainer, self._run_dir, self._on_step, self._watcher = trainer, run_dir, on_step, watcher

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """From here on the peak of the memory is measured."""
        peak_memory.begin()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write down the peak of the memory. A collective call."""
        accelerator = self._trainer.accelerator
        ranks = gather_object([peak_memory.peak(accelerator.device.type == "cuda")])
        if accelerator.is_main_process:
            peak_memory.record(self._run_dir, ranks)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """One line per step: the rollout's numbers and those of the updates on it. Raises RunError on an alarm."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        measured = self._trainer.step_metrics
        seconds = {**measured["seconds"], "update": time.monotonic() - self._trainer.rollout_ended}
        line = measured | {ours: logs.get(theirs) for ours, theirs in UPDATE_METRICS.items()}
        line |= {ours: logs[theirs] for ours, theirs in VALUE_METRICS.items() if theirs in logs}
        line |= {"optimizer_steps": state.global_step, "seconds": seconds}
        MetricsLog(self._run_dir / METRICS).append(line)
        if self._on_step:
            self._on_step(line)
        if self._watcher:
            self._watcher.hear(line)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """This rank's files of the checkpoint are written, but the value head's: write it, and say when all are."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if head := self._trainer.value_head:
            with DistributedBackend(self._trainer.accelerator).gather_params(head.weights):
                if state.is_world_process_zero:
                    head.save(folder)
        self._trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            # A resumed run makes the reference anew from its start. Where transformers finds an adapter in a folder of
            # its own, it loads only such folders, and would leave the trained adapter as it was at the start.
            shutil.rmtree(folder / REFERENCE, ignore_errors=True)
            for step, version in self._trainer.queue.ahead.items():
                self._trainer.vllm_generation.keep(version.name, folder / BEGUN / f"{step:06d}")
            append_lines(folder / COMPLETE, ["complete"])


def adopt_begun(trainer: DialogueTrainer, checkpoint: Path) -> None:
    """Let the steps that were begun at a checkpoint begin again, each with the version that it began with."""
    queue = trainer.queue
    for folder in sorted((checkpoint / BEGUN).glob("*")):
        step, (files,) = int(folder.name), folder.iterdir()
        name = trainer.vllm_generation.adopt(files)
        queue.earlier[step] = Version(max(0, step - queue.max_staleness), name)


def prepare_run_dir(run_dir: Path, resume: bool, args: Any) -> Path | None:
    """Make the folder ready and return the checkpoint to go on from, if any.

    On resume, torn checkpoints and whatever was recorded after the checkpoint go. Raises InputError when the folder
    holds a run and ``resume`` is off.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if not resume:
        if args.process_index == 0 and any((run_dir / name).exists() for name in (METRICS, TRAJECTORIES, CHECKPOINTS)):
            raise InputError(f"{run_dir} holds a run already; resume it, or name another folder")
        return None
    checkpoints = sorted((run_dir / CHECKPOINTS).glob("checkpoint-*"), key=_updates_done)
    complete = [path for path in checkpoints if (path / COMPLETE).exists()]
    newest = complete[-1] if complete else None
    if args.process_index == 0:
        for torn in set(checkpoints) - set(complete):
            shutil.rmtree(torn)
        done = _updates_done(newest) // updates_per_rollout(args) if newest else 0
        keep_lines(run_dir / METRICS, lambda line: line["step"] < done)
        judged = sorted(path.relative_to(run_dir).as_posix() for path in (run_dir / JUDGMENTS).glob("*.jsonl"))
        for name in (TRAJECTORIES, SCORES, USAGE, *judged):
            keep_lines(run_dir / name, lambda line: step_of(_first_dialogue(line)) in range(done))
        keep_lines(run_dir / ALARMS, lambda line: line["step"] < done)
    return newest


def _first_dialogue(line: dict[str, Any]) -> str:
    """The dialogue that a line is about, or the first of the two that it compares."""
    return line["dialogue_ids"][0] if "dialogue_ids" in line else line["dialogue_id"]


def _updates_done(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
