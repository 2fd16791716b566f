"""From new weights to the first token under them: an adapter published, and merged full weights pushed, side by side.

The model has the shape of a small Qwen2 and random weights. A full push writes the merged weights into the model's
folder, has vLLM read them again, and empties the prefix cache, which would otherwise answer for the old weights.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from scripts.benchmark_parts.engine import BenchmarkServer, forget_prefixes, start
from scripts.benchmark_parts.work import spread
from scripts.training_step import random_model
from trainers.adapter_sync import WEIGHTS
from trainers.memory import Architecture
from trainers.run_files import flush
from trainers.vllm_server import VllmSettings

# 230 million parameters, half of them the words of Qwen2.
SHAPE = Architecture(hidden=768, layers=12, heads=12, kv_heads=2, feed_forward=3072, vocabulary=151_936, tied=True)
RANKS = (8, 16)
PROMPT = tuple(range(100, 164))  # 64 tokens
FULL = "model.safetensors"
CONTEXT = 256


def measure_publish(folder: Path, device: str, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of both ways, ``rounds`` times each after one that warms up; ``folder`` is filled."""
    model = random_model(SHAPE, "float32", CONTEXT, on="cpu")
    base = folder / "base"
    model.save_pretrained(base)
    words = Tokenizer(models.WordLevel({f"w{word}": word for word in range(SHAPE.vocabulary)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0").save_pretrained(base)
    settings = VllmSettings(
        base,
        folder / "vllm.log",
        device=device,
        max_model_len=CONTEXT,
        max_lora_rank=max(RANKS),
    )
    found: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "shape": asdict(SHAPE),
        "full_bytes": (base / FULL).stat().st_size,
        "adapters": {},
    }
    with start(settings) as server:
        found["full"] = _full(server, model, base, rounds)  # first, while no adapter has taken a slot
        for rank in RANKS:
            found["adapters"][str(rank)] = _adapters(server, model, folder / "runs" / f"rank{rank}", rank, rounds)
            part = found["adapters"][str(rank)]
            part["share_of_full_bytes"] = part["bytes"] / found["full_bytes"]
    return found


def _adapters(server: BenchmarkServer, model: PreTrainedModel, folder: Path, rank: int, rounds: int) -> dict[str, Any]:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tuned = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    times: dict[str, list[float]] = {"write": [], "publish": [], "first_token": [], "publish_to_first_token": []}
    bytes_ = 0
    for number in range(rounds + 1):
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
        path = folder / f"v{number}"
        started = time.perf_counter()
        _write_adapter(tuned, path)
        written = time.perf_counter()
        name = server.publish(path)
        published = time.perf_counter()
        first_token(server, name)
        ended = time.perf_counter()
        server.retire(name)
        bytes_ = sum(file.stat().st_size for file in path.iterdir())
        if number:
            times["write"].append(written - started)
            times["publish"].append(published - written)
            times["first_token"].append(ended - published)
            times["publish_to_first_token"].append(ended - written)
    tuned.unload()
    return {"bytes": bytes_, "seconds": {name: spread(values) for name, values in times.items()}}


def _write_adapter(tuned: Any, path: Path) -> None:
    """As a run writes one, on the disk when it returns; see trainers/adapter_sync.py."""
    path.mkdir(parents=True)
    assert isinstance(tuned, PeftModel)
    tuned.peft_config["default"].save_pretrained(str(path))
    weights = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, path / WEIGHTS)
    for file in path.iterdir():
        flush(file)


def _full(server: BenchmarkServer, model: PreTrainedModel, base: Path, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {"write": [], "load": [], "first_token": [], "publish_to_first_token": []}
    for number in range(rounds + 1):
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        started = time.perf_counter()
        unfinished = base.with_name("unfinished")
        model.save_pretrained(unfinished)
        flush(unfinished / FULL)
        (unfinished / FULL).replace(base / FULL)
        shutil.rmtree(unfinished)
        written = time.perf_counter()
        asked = {"method": "reload_weights"}
        httpx.post(f"{server.url}/collective_rpc", json=asked, timeout=300).raise_for_status()
        forget_prefixes(server)
        loaded = time.perf_counter()
        first_token(server, None)
        ended = time.perf_counter()
        if number:
            times["write"].append(written - started)
            times["load"].append(loaded - written)
            times["first_token"].append(ended - loaded)
            times["publish_to_first_token"].append(ended - written)
    return {"seconds": {name: spread(values) for name, values in times.items()}}


def first_token(server: BenchmarkServer, adapter: str | None, prompt: Sequence[int] = PROMPT) -> float:
    """Ask for one token and return the log-probability of what came."""
    asked = server.generate(prompt, adapter=adapter, seed=1, max_tokens=1, temperature=1.0)
    return asyncio.run(asked).logprobs[0]
