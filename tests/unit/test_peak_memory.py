"""What training took at its peak: measured in this process, the largest over ranks, and told beside the estimate."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from scripts.commands.train import memory_line
from trainers import peak_memory
from trainers.config import RunConfig
from trainers.memory import GIB, MEASURED, SMALL_POLICY, estimate_memory, measured_memory

MIB = 2**20


def test_the_peak_is_what_was_held_since_the_beginning_though_it_is_given_back():
    peak_memory.begin()
    before = peak_memory.peak(on_gpu=False)["resident"]
    held = torch.ones(200 * MIB // 4)
    del held
    assert 190 * MIB < peak_memory.peak(on_gpu=False)["resident"] - before < 260 * MIB
    peak_memory.begin()
    assert peak_memory.peak(on_gpu=False)["resident"] - before < 100 * MIB


def test_the_largest_rank_is_told_and_a_resumed_run_keeps_the_larger_part(tmp_path: Path):
    peak_memory.record(tmp_path, [{"allocated": 5, "reserved": 9}, {"allocated": 7, "reserved": 8}])
    assert json.loads((tmp_path / MEASURED).read_text()) == {"allocated": 7, "reserved": 9}
    peak_memory.record(tmp_path, [{"allocated": 3, "reserved": 10}])
    assert json.loads((tmp_path / MEASURED).read_text()) == {"allocated": 7, "reserved": 10}


def test_a_process_is_compared_with_the_estimate_of_its_part_of_the_machine(tmp_path: Path):
    config = RunConfig.model_validate({})
    assert measured_memory(config, Path("bootstrap"), tmp_path) is None
    peak_memory.record(tmp_path, [{"resident": 3 * GIB}])
    told = measured_memory(config, Path("bootstrap"), tmp_path)
    engine = ("engine weights", "adapter slots", "KV cache", "engine runtime")
    [whole] = estimate_memory(config, SMALL_POLICY)
    expected = sum(bytes_ for part, bytes_ in whole.parts.items() if part not in engine)
    assert told == {
        "of": "resident", "peak_bytes": 3 * GIB, "reserved_bytes": None, "estimate_bytes": expected
    }  # fmt: skip
    assert told is not None and memory_line(told).startswith(
        "memory of training at its peak: 3.00 GiB (resident set of the training process); estimated: "
    )


def test_on_a_gpu_what_lies_outside_the_allocator_is_compared_with_nothing(tmp_path: Path):
    config = RunConfig.model_validate({"devices": {"training": [0], "engine": [0]}})
    peak_memory.record(tmp_path, [{"allocated": 2 * GIB, "reserved": 3 * GIB}])
    told = measured_memory(config, Path("bootstrap"), tmp_path)
    assert told is not None
    parts = estimate_memory(config, SMALL_POLICY)[0].parts
    names = ("base weights", "adapter", "gradients", "optimizer", "activations", "logits")
    assert told["estimate_bytes"] == sum(parts[name] for name in names)
    assert memory_line(told | {"estimate_bytes": None}) == (
        "memory of training at its peak: 2.00 GiB (allocated on a GPU), 3.00 reserved; not estimated"
    )


def test_a_model_that_the_estimate_does_not_know_is_measured_all_the_same(tmp_path: Path):
    peak_memory.record(tmp_path, [{"resident": GIB}])
    told = measured_memory(RunConfig.model_validate({}), Path("acme/gpt-9"), tmp_path)
    assert told is not None and told["peak_bytes"] == GIB and told["estimate_bytes"] is None
