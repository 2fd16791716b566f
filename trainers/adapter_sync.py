"""Moves the adapter from the trainer to the policy server: written, complete, named, and deleted once out of use."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from trl.distributed import DistributedBackend

from envs.errors import RunError
from trainers.policy_server import PolicyServer

if TYPE_CHECKING:
    from transformers import Trainer
    from trl.trainer.grpo_trainer import GRPOTrainer

WEIGHTS = "adapter_model.safetensors"
TRAINED, REFERENCE = "default", "ref"  # the names that PEFT and TRL give them


class AdapterSync:
    """Stands where TRL keeps its vLLM generation: TRL calls ``sync_weights`` before a rollout with new weights.

    ``name`` is the adapter to sample with, on every rank. The newest ``window`` versions stay published, with their
    files.
    """

    def __init__(self, trainer: GRPOTrainer, server: PolicyServer, directory: Path, window: int = 2) -> None:
        self._trainer, self._server, self._directory, self._window = trainer, server, directory, window
        self._published: list[tuple[str, Path]] = []
        self.name: str | None = None
        self.seconds = 0.0

    def sync_weights(self) -> None:
        """Write the current adapter, publish it under a new name, and let go of versions older than the window."""
        started = time.monotonic()
        version = self._trainer.state.global_step
        path = _unused(self._directory / f"v{version:06d}")
        write_adapter(self._trainer, path)
        outcome: list[str | None] = [None, None]
        if self._trainer.accelerator.is_main_process:
            outcome = self._publish(path)
        broadcast_object_list(outcome, from_process=0)
        self.name, problem = outcome
        if problem:
            raise RunError(problem)
        self.seconds = time.monotonic() - started

    def _publish(self, path: Path) -> list[str | None]:
        """[name, None], or [None, what went wrong]: the other ranks must hear of a failure too."""
        try:
            name = self._server.publish(path)
            self._published.append((name, path))
            while len(self._published) > self._window:
                old, files = self._published.pop(0)
                self._server.retire(old)
                shutil.rmtree(files)
        except RunError as error:
            return [None, str(error)]
        return [name, None]

    def close(self) -> None:
        """Retire what is still published and delete the files of all versions, those of a stopped run too."""
        if not self._trainer.accelerator.is_main_process:
            return
        for name, _ in self._published:
            self._server.retire(name)
        self._published.clear()
        for path in self._directory.glob("v*"):
            shutil.rmtree(path)


def reference_adapter(model: PeftModel) -> str | None:
    """The adapter of the policy from which the KL divergence is taken; None: the base model, with no adapter on."""
    return REFERENCE if REFERENCE in model.peft_config else None


def write_adapter(trainer: Trainer, path: Path) -> None:
    """Write the trained adapter as a PEFT folder at ``path``; it appears complete or not at all. A collective call.

    A frozen copy that stands beside it as the reference is not written.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PeftModel)
    distributed = DistributedBackend(trainer.accelerator)
    with distributed.gather_params([weight for weight in model.parameters() if weight.requires_grad]):
        weights = get_peft_model_state_dict(model, adapter_name=TRAINED, save_embedding_layers=False)
        state = {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights.items()}
    if trainer.accelerator.is_main_process:
        _write(model, state, path)
    trainer.accelerator.wait_for_everyone()


def _write(model: PeftModel, state: dict[str, torch.Tensor], path: Path) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        model.peft_config[TRAINED].save_pretrained(str(unfinished))
        save_file(state, unfinished / WEIGHTS, metadata={"format": "pt"})
        for file in unfinished.iterdir():
            _flush(file)
        if path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
        _flush(path.parent)
    except OSError as error:
        raise RunError(
            f"{path}: the adapter can't be written ({error}); free some space or mend the rights, then resume"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unused(path: Path) -> Path:
    """``path``, or with a suffix when a run that was stopped has left a version there."""
    attempt, candidate = 1, path
    while candidate.exists():
        attempt += 1
        candidate = path.with_name(f"{path.name}-{attempt}")
    return candidate
