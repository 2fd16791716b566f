"""What is touched of accelerate and DeepSpeed to train with ZeRO on CPU, and is not promised to stay."""

from __future__ import annotations

import inspect

import deepspeed
from accelerate.state import AcceleratorState
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.comm.torch import build_shm_op
from transformers import TrainingArguments


def test_the_shared_memory_operator_is_compiled_unless_it_is_called_incompatible(monkeypatch):
    assert "deepspeed.ops.__compatible_ops__.get(builder.NAME, False)" in inspect.getsource(build_shm_op)
    builder = CPU_Accelerator().create_op_builder("ShareMemCommBuilder")
    assert builder is not None and builder.NAME == "deepspeed_shm_comm"
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)
    assert build_shm_op() is None


def test_the_trainer_takes_a_state_that_was_made_before_and_forgets_it_otherwise():
    assert list(inspect.signature(AcceleratorState._reset_state).parameters) == ["reset_partial_state"]
    source = inspect.getsource(TrainingArguments._setup_devices.func)
    assert 'accelerator_state_kwargs["use_configured_state"]' in source and "_reset_state(reset_partial" in source
