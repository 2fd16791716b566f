"""DeepSpeed's ZeRO: optimizer, gradients and, at stage 3, weights are shared out over the ranks (arXiv 1910.02054)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.distributed import DistributedBackend

from envs.errors import InputError


def placement(deepspeed: Path | None, *, on_gpu: bool) -> dict[str, Any]:
    """Where and with what a rank trains, as the trainer's arguments; DeepSpeed is brought up first where that is ours.

    On CPU accelerate would leave DeepSpeed out, so it is handed a state that holds it. Raises InputError unless the
    ranks have met before (``trainers.ranks.together``).
    """
    if deepspeed is None or on_gpu:
        return {"use_cpu": not on_gpu, "deepspeed": str(deepspeed) if deepspeed else None}
    if not torch.distributed.is_initialized():
        raise InputError(f"trainer.deepspeed: {deepspeed} is for several training processes; start them, or remove it")
    import deepspeed as engine
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    set_accelerator(CPU_Accelerator())  # it would take a GPU where there is one
    # Compiled on the spot, it would take a compiler and a minute, for calls that training doesn't make.
    engine.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine.init_distributed("gloo", verbose=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True).distributed_type = DistributedType.DEEPSPEED
    return {"use_cpu": False, "deepspeed": str(deepspeed), "accelerator_config": {"use_configured_state": True}}


def same_type(trainer: Trainer) -> None:
    """Bring what is trained to the type of the base, before a training of stage 3, which gathers both together.

    DeepSpeed steps on fp32 copies of its own.
    """
    if DistributedBackend(trainer.accelerator).is_zero3:
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        model.to(model.get_base_model().dtype)


@contextmanager
def whole_models_again() -> Iterator[None]:
    """After this block models are loaded whole: as long as stage 3 is in force, each rank gets its share alone."""
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
