"""Moves the adapter from the trainer to the policy server: written, complete, named, and deleted once out of use."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from trl.distributed import DistributedBackend

from envs.errors import RunError
from trainers.policy_server import PolicyServer
from trainers.run_files import flush

if TYPE_CHECKING:
    from transformers import Trainer
    from trl.trainer.grpo_trainer import GRPOTrainer

WEIGHTS = "adapter_model.safetensors"
TRAINED, REFERENCE = "default", "ref"  # the names that PEFT and TRL give them


class AdapterSync:
    """Stands where TRL keeps its vLLM generation: TRL calls ``sync_weights`` before a rollout with new weights.

    ``name`` is the adapter to sample with, on every rank. A version is let go of when ``max_staleness`` newer ones
    and one more are published: no dialogue in flight is older.
    """

    def __init__(self, trainer: GRPOTrainer, server: PolicyServer, directory: Path, max_staleness: int = 0) -> None:
        self._trainer, self._server, self._directory, self._window = trainer, server, directory, max_staleness + 1
        self._published: dict[str, Path] = {}  # oldest first
        self._files: dict[str, Path] = {}
        self.name: str | None = None  # None: nothing is published yet
        self.seconds = 0.0

    def sync_weights(self) -> None:
        """Write the current adapter, publish it under a new name, and let go of versions older than the window."""
        started = time.monotonic()
        path = self._place(f"v{self._trainer.state.global_step:06d}")
        write_adapter(self._trainer, path)
        self.name = self._publish_everywhere(path)
        self.seconds = time.monotonic() - started

    def keep(self, name: str, folder: Path) -> None:
        """Keep the files of a published version below ``folder``, on a rank that publishes."""
        _link(self._published[name], folder / self._published[name].name)

    def adopt(self, folder: Path) -> str:
        """Publish a version that was kept in ``folder`` under a new name, which is returned. A collective call."""
        path = self._place(folder.name)
        if self._trainer.accelerator.is_main_process:
            _link(folder, path)
        self._trainer.accelerator.wait_for_everyone()
        return self._publish_everywhere(path)

    def _place(self, name: str) -> Path:
        """An unused folder. The first rank says which: another one might look when it is already there."""
        place = [str(_unused(self._directory / name))]
        broadcast_object_list(place, from_process=0)
        return Path(place[0])

    def _publish_everywhere(self, path: Path) -> str:
        # A failure on one rank has to be heard on all.
        outcomes: list[_Outcome] = gather_object([self._publish(path) if self._publishes else _Outcome()])
        if problem := next((outcome.problem for outcome in outcomes if outcome.problem), None):
            raise RunError(problem)
        name = str(outcomes[0].name)
        if not self._publishes:
            self._server.follow(name, outcomes[0].left_out or {})
        return name

    @property
    def _publishes(self) -> bool:
        """Whether this rank tells a server of its adapters: the first one does, or each its own."""
        return self._trainer.accelerator.is_main_process or self._server.in_process

    def _publish(self, path: Path) -> _Outcome:
        try:
            name = self._server.publish(path)
            self._published[name] = path
            while len(self._published) > self._window:
                old = next(iter(self._published))
                self._server.retire(old)
                self._delete(self._published.pop(old))
        except RunError as error:
            return _Outcome(problem=str(error))
        return _Outcome(name, left_out=dict(self._server.left_out))

    def close(self) -> None:
        """Retire what is still published and delete the files of all versions, those of a stopped run too."""
        for name in self._published:
            self._server.retire(name)
        self._published.clear()
        for path in self._directory.glob("v*"):
            self._delete(path)

    def _delete(self, path: Path) -> None:
        if self._trainer.accelerator.is_main_process:
            shutil.rmtree(path)


def _link(source: Path, target: Path) -> None:
    """Give the complete, never changing files of ``source`` a second place, at the price of a copy at most."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:  # file systems without hard links
        shutil.copytree(source, target, dirs_exist_ok=True)


class _Outcome(NamedTuple):
    """What came of publishing: the adapter's name, or what went wrong; and the servers without it, and why."""

    name: str | None = None
    problem: str | None = None
    left_out: Mapping[str, str] | None = None


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
            flush(file)
        if path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
        flush(path.parent)
    except OSError as error:
        raise RunError(
            f"{path}: the adapter can't be written ({error}); free some space or mend the rights, then resume"
        ) from error


def _unused(path: Path) -> Path:
    """``path``, or with a suffix when a run that was stopped has left a version there."""
    attempt, candidate = 1, path
    while candidate.exists():
        attempt += 1
        candidate = path.with_name(f"{path.name}-{attempt}")
    return candidate
