"""One process, two DDP ranks, and two ranks of ZeRO-2 and ZeRO-3 train alike on the same dialogues with a real vLLM.

Run with ``make test-ranks``. All runs ask one server. Its sampling is seeded by dialogue and turn, so that the same
weights give the same tokens.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.integration.test_training import lines
from trainers.run_files import COMPLETE
from trainers.train import FINAL_ADAPTER
from trainers.value_head import FILE
from trainers.vllm_server import VllmServer, VllmSettings
from trainers.warm_start import WARM_ADAPTER

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 2e-5
ZERO = {stage: f"configs/deepspeed/zero{stage}.json" for stage in (2, 3)}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
PROMPT = [258, 104, 101, 108, 108, 111]
Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    log_file = tmp_path_factory.mktemp("logs") / "vllm.log"
    with VllmServer.start(VllmSettings(model_dir, log_file, max_model_len=1024, max_loras=8, threads=1)) as started:
        yield started


class Ranks:
    """Runs of several ranks, one after the other; see tests/several_ranks.py."""

    def __init__(self, model_dir: Path, root: Path) -> None:
        self.root = root
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.several_ranks", str(model_dir)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def train(self, run: str, ranks: int, **options: Any) -> dict[str, Any]:
        """How the ranks of a run in the folder ``run`` ended."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"run": str(self.root / run), "ranks": ranks, **options}) + "\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("{"):  # libraries may say something first
            assert line, "the ranks' parent ended"
        return json.loads(line)

    def told(self, run: str, rank: int) -> str:
        """What a rank said."""
        return Path(f"{self.root / run}.{rank}.log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ranks(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(model_dir, tmp_path_factory.mktemp("runs"))
    yield started
    started.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def trained(ranks: Ranks, server: VllmServer) -> Trained:
    """The folder of a finished run, made at the first asking."""

    def run(algorithm: str, world: int, stage: int | None = None) -> Path:
        name = f"{algorithm}-{world}-{stage}"
        if not (ranks.root / name).exists():
            zero = {"deepspeed": ZERO[stage]} if stage else {}
            ended = ranks.train(name, world, algorithm=algorithm, url=server.urls[0], **zero)
            assert ended["statuses"] == [0] * world, ranks.told(name, 0)[-3000:]
        return ranks.root / name

    return run


def sampled(run_dir: Path) -> list[list[list[int]]]:
    """The ids of each reply of each dialogue."""
    talks = sorted(lines(run_dir / "trajectories.jsonl"), key=lambda line: line["dialogue_id"])
    return [[turn["supporter"]["ids"] for turn in talk["turns"]] for talk in talks]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


WAYS = [("grpo", None), ("grpo", 2), ("grpo", 3), ("ppo", None), ("ppo", 2), ("ppo", 3)]


@pytest.mark.parametrize(("algorithm", "stage"), WAYS, ids=lambda given: str(given or "ddp"))
def test_two_ranks_have_the_losses_and_the_adapter_of_one_process(trained: Trained, algorithm: str, stage: int | None):
    one, two = trained(algorithm, 1), trained(algorithm, 2, stage)
    assert sampled(two) == sampled(one)
    names = ["loss", "reward", "mean_final_emotion"]
    names += ["value_loss", "explained_variance", "kl"] if algorithm == "ppo" else []
    steps = list(zip(lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl"), strict=True))
    assert len(steps) == 3
    for first, second in steps:
        assert second["dialogues"] == first["dialogues"] == 16
        assert {name: second[name] for name in names} == pytest.approx({n: first[n] for n in names}, abs=TOLERANCE)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    ours, theirs = adapter(one / FINAL_ADAPTER), adapter(two / FINAL_ADAPTER)
    assert {name: weight.shape for name, weight in ours.items()} == {name: w.shape for name, w in theirs.items()}
    for name, weight in ours.items():
        assert float((weight - theirs[name]).abs().max()) < TOLERANCE, name
    moved = min(float(weight.abs().max()) for name, weight in ours.items() if "lora_B" in name)
    assert moved > 50 * TOLERANCE  # else the comparison would say nothing


def test_the_adapter_of_zero_3_answers_in_peft_and_in_vllm_as_that_of_one_process(trained, model_dir, server):
    def in_peft(folder: Path) -> torch.Tensor:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), str(folder))
        with torch.no_grad():
            return model(torch.tensor([PROMPT])).logits.log_softmax(-1)

    def in_vllm(folder: Path) -> tuple[float, ...]:
        named = folder.rename(folder.with_name(f"{folder.parents[1].name}-final"))
        name = server.publish(named)
        request = server.generate(PROMPT, adapter=name, seed=1, max_tokens=4, temperature=1.0)
        answered = asyncio.run(request)
        server.retire(name)
        named.rename(folder)
        return (*answered.ids, *answered.logprobs)

    one, three = (trained("grpo", ranks, stage) / FINAL_ADAPTER for ranks, stage in ((1, None), (2, 3)))
    base = AutoModelForCausalLM.from_pretrained(model_dir)(torch.tensor([PROMPT])).logits.log_softmax(-1)
    assert torch.allclose(in_peft(three), in_peft(one), atol=1e-4)
    assert not torch.allclose(in_peft(three), base, atol=1e-2)
    assert in_vllm(three) == pytest.approx(in_vllm(one), abs=1e-4)


def test_two_ranks_of_zero_3_go_on_from_an_adapter_as_one_process_does(trained: Trained, ranks: Ranks):
    """The adapter is then also the reference of the KL divergence, which stands beside it."""
    given = {"algorithm": "grpo", "start": str(trained("grpo", 1) / FINAL_ADAPTER)}
    assert ranks.train("start-1", 1, **given)["statuses"] == [0]
    assert ranks.train("start-2", 2, **given, deepspeed=ZERO[3])["statuses"] == [0, 0], ranks.told("start-2", 0)[-3000:]
    one, two = (adapter(ranks.root / name / FINAL_ADAPTER) for name in ("start-1", "start-2"))
    assert sampled(ranks.root / "start-2") == sampled(ranks.root / "start-1")
    assert max(float((weight - two[name]).abs().max()) for name, weight in one.items()) < TOLERANCE


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_that_a_rank_broke_goes_on_from_its_checkpoint_to_the_same_adapter(
    trained: Trained, ranks: Ranks, server: VllmServer, stage: int
):
    whole, name = trained("ppo", 2, stage), f"ppo-cut-{stage}"
    given = {"algorithm": "ppo", "url": server.urls[0], "deepspeed": ZERO[stage]}
    assert ranks.train(name, 2, **given, dies=[1, 2, "breaks"])["statuses"] == [1, 1]
    cut = ranks.root / name
    checkpoint = max((cut / "checkpoints").glob("checkpoint-*"))
    assert (checkpoint / COMPLETE).exists() and load_file(checkpoint / FILE)["weight"].any()
    saved, final = adapter(checkpoint), adapter(whole / FINAL_ADAPTER)
    assert {name: weight.shape for name, weight in saved.items()} == {name: w.shape for name, w in final.items()}
    assert ranks.train(name, 2, **given, resume=True)["statuses"] == [0, 0], ranks.told(name, 0)[-3000:]
    assert sampled(cut) == sampled(whole)
    for name, weight in adapter(cut / FINAL_ADAPTER).items():
        assert float((weight - final[name]).abs().max()) < TOLERANCE, name


@pytest.mark.parametrize(("rank", "how"), [(1, "breaks"), (1, "killed"), (0, "killed")])
def test_a_rank_that_dies_in_training_ends_the_other_with_the_cause(ranks: Ranks, rank: int, how: str):
    """No launcher ends them here: each rank is alone with what it hears."""
    name, timeout = f"dies-{rank}-{how}", 60.0
    ended = ranks.train(name, 2, algorithm="grpo", dies=[rank, 1, how], timeout=timeout)
    assert ended["statuses"][rank] == (-signal.SIGKILL if how == "killed" else 1)
    assert ended["statuses"][1 - rank] == 1 and ended["seconds"] < timeout
    told = ranks.told(name, 1 - rank)
    if how == "breaks":
        assert "RunError: rank 1 of 2 failed: the scorer broke on purpose" in told
    else:
        assert f"RunError: rank {rank}" in told and "lost" in told


def test_a_whole_run_with_a_warm_start_trains_on_two_ranks_of_zero_3_and_is_verified(model_dir, server, tmp_path):
    said = {"role": "assistant", "content": "I hear how much that weighs on you."}
    rows = [{"messages": [{"role": "user", "content": f"It rained {days} days."}, said]} for days in range(4)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "run": {"name": "whole", "dir": str(tmp_path)},
        "policy": {"model": str(model_dir), "context_tokens": 1000, "max_new_tokens": 40},
        "cards": {"paths": ["configs/cards/en"]},
        "dialogue": {"max_turns": 1},
        "warm_start": {"data": [str(tmp_path / "talks.jsonl")], "epochs": 1, "batch": 4},
        "trainer": {"steps": 1, "cards_per_step": 2, "dialogues_per_card": 4, "micro_batch": 2, "deepspeed": ZERO[3]},
        "engine": {"urls": [server.urls[0]]},
        "evaluation": {"seeds_per_card": 1, "bootstrap_resamples": 100, "split": "dev"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config), encoding="utf-8")
    command = ["-m", "scripts.attune", "train", "--json", "--config", str(tmp_path / "run.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (summary,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert summary["verified"] is True
    (line,) = lines(tmp_path / "whole" / "metrics.jsonl")
    assert line["dialogues"] == 8 and line["policy_version"] == "whole-v000000"
    final = adapter(tmp_path / "whole" / FINAL_ADAPTER)
    assert final.keys() == adapter(tmp_path / "whole" / WARM_ADAPTER).keys()
    assert all(weight.numel() for weight in final.values())
