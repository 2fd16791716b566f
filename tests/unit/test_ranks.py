"""Ranks that end: whoever fails, is killed or never comes, the others end soon and say why."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.errors import InputError
from trainers.config import RunConfig
from trainers.ranks import check_ranks
from trainers.train import TrainSettings, training_arguments

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 30  # seconds, of the ranks
RANK = f"""
import os, signal, sys, time
from trainers.ranks import together
with together({TIMEOUT} if "late" not in sys.argv else 3, on_gpu=False) as ranks:
    import torch
    numbers = torch.ones(1)
    torch.distributed.all_reduce(numbers)
    print("met", int(numbers), flush=True)
    exec(sys.argv[1 + ranks.rank])
    torch.distributed.all_reduce(numbers)
    print("summed", int(numbers), flush=True)
"""


def ended(*doings: str, absent: int = 0, further: tuple[str, ...] = ()) -> list[tuple[int, str, float]]:
    """(exit status, output, seconds after the first end) of ranks that meet, do a line of Python each, and sum."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"WORLD_SIZE": str(len(doings) + absent), "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *doings, *further],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(len(doings))
    ]
    ends: dict[int, float] = {}
    last = time.monotonic() + 150
    while len(ends) < len(ranks) and time.monotonic() < last:
        ends |= {n: time.monotonic() for n, rank in enumerate(ranks) if n not in ends and rank.poll() is not None}
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()
    first = min(ends.values(), default=0.0)
    outputs = [rank.communicate()[0] for rank in ranks]
    return [(rank.returncode, outputs[n], ends.get(n, last) - first) for n, rank in enumerate(ranks)]


def test_ranks_that_are_done_end_well_whoever_is_first():
    for status, output, _ in ended("time.sleep(1.5)", "pass"):
        assert status == 0 and output.split() == ["met", "2", "summed", "4"]


@pytest.mark.parametrize("busy", ["pass", "time.sleep(60)"], ids=["in a collective call", "elsewhere"])
def test_a_rank_that_fails_ends_the_others_with_its_reason(busy: str):
    (first, heard, seconds), (second, told, _) = ended(busy, "raise ValueError('the disk is full')")
    assert first == second == 1 and "ValueError: the disk is full" in told
    assert "rank 1 of 2 failed: the disk is full" in heard and "summed" not in heard
    assert seconds < TIMEOUT


def test_a_rank_that_is_too_late_for_a_collective_call_ends_both():
    (first, told, seconds), (second, heard, _) = ended("pass", "time.sleep(60)", further=("late",))
    assert first == second == 1 and seconds < TIMEOUT
    assert "rank 0 of 2 failed: " in heard and "raise trainer.rank_timeout=3 s" in heard and "Timed out" in told


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_named_by_the_others(killed: int):
    doings = ["pass", "pass"]
    doings[killed] = "os.kill(os.getpid(), signal.SIGKILL)"
    found = ended(*doings)
    assert found[killed][0] == -9
    status, output, seconds = found[1 - killed]
    assert status == 1 and f"RunError: rank {killed}" in output and "lost" in output and seconds < TIMEOUT


def test_a_rank_that_never_comes_is_named():
    ((status, output, seconds),) = ended("pass", absent=1, further=("late",))
    assert status == 1 and "trainer.rank_timeout=3 s" in output and seconds < TIMEOUT


def refusal(monkeypatch: pytest.MonkeyPatch, world: int, **sections: dict) -> str:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(InputError) as caught:
        check_ranks(RunConfig.model_validate(sections))
    return str(caught.value)


def test_what_the_processes_can_not_train_is_refused_before_they_start(monkeypatch):
    port = {"engine": {"port": 8123}}
    zero = {"deepspeed": "configs/deepspeed/zero3.json"}
    bf16 = {"policy": {"dtype": "bfloat16"}, "trainer": {**zero, "logprob_tolerance": 1.0, "micro_batch": 4}}
    assert "engine.port: is needed when several" in refusal(monkeypatch, 2, trainer={"micro_batch": 4})
    assert "devices.training: names 2 GPUs, and 1 processes" in refusal(
        monkeypatch, 1, devices={"training": [0, 1]}, trainer={"micro_batch": 4}, **port
    )
    assert "trainer.deepspeed: shares a state out" in refusal(monkeypatch, 1, trainer=zero)
    assert "policy.dtype: DeepSpeed trains in float32 on CPU" in refusal(monkeypatch, 2, **bf16, **port)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_ranks(RunConfig.model_validate({"trainer": {**zero, "micro_batch": 4}, **port}))


def test_every_rank_has_as_many_rows_or_nothing_starts(monkeypatch, tmp_path):
    """32 dialogues are 2 minibatches of 4 micro-batches on 4 ranks; 3 ranks can't have as many each."""
    assert "trainer.micro_batch: 32 dialogues a step" in refusal(monkeypatch, 3, engine={"port": 8123})
    with pytest.raises(InputError, match=r"32 dialogues can't be split .*on each of 3 ranks"):
        training_arguments(TrainSettings(steps=1, micro_batch=1), tmp_path)
