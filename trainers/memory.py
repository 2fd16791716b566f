"""An estimate of the memory that a run needs on each device, from the configuration and the model's architecture alone.

With P parameters of the base model, L of the adapter, e bytes per number of the base model's type (fp32 4, bf16 2),
b = trainer.micro_batch dialogues of T tokens in a pass (policy.context_tokens; where policy.format has thoughts, each
of m turns is a segment with its own history, and T is (m + 1) / 2 times as much), n layers, and the sizes h (hidden),
q = heads x head size, k = key-value heads x head size, f (feed-forward), v (vocabulary), r (rank), a training device
holds what follows. Where trainer.micro_batch_tokens is set, b T is at most that, or T where one row is longer.

    base weights   P e                        frozen, so without gradients and optimizer state; policy.quantization:
                   (P - M) e + M w + h f e    the M numbers in the linear layers of the blocks take w bytes, in 8bit 1,
                                              in 4bit 0.516, and one layer at a time is made whole again
    adapter        4 L, in bf16 6 L           fp32, and its copy in the type that it computes in
    gradients      4 L / s                    s: training devices from ZeRO stage 2 on, else 1
    optimizer      8 L / s                    AdamW's two moments; s: from stage 1 on. At stage 3 base and adapter are
                                              shared out too, but for 10^9 weights that may be whole at once
    activations    n b T A + 2 e f b T        A = e (2h + 4q + 4f + 7r + T) + 8h bytes a layer and token, or, with
                   n b T h e + b T A          gradient checkpointing, each layer's input and one layer at a time;
                     + 2 e f b T              and the gradients at the widest layer, of base and adapter
    logits         e N x 32768 + 4h b T       one tile of N = min(b T, 4096) tokens and part of the words, as TRL's head
                                              computes them, and the fp32 gradient of what goes into the head
                   32 N min(v, 32768)         on a CPU the tile and seven fp32 tensors of its size
                     + 4h b T

A counts what a layer of SwiGLU and grouped-query attention keeps for the backward pass: both norms' outputs (2h), the
queries, the keys and values spread out to all query heads, the heads' output (4q), four feed-forward tensors (4f), the
adapter's inner ones (7r), a row of the attention mask (T: dialogues of different lengths are padded, and attention
turns their mask into numbers), and both norms' inputs in fp32 (8h). It is the counting of arXiv 2205.05198 for such a
layer. docs/hardware.md compares the estimate with measured peaks.

The engine on a GPU takes its share of the device whatever it needs; keys and values get what P e / t, the adapter slots
(max_loras L e) and the runtime leave of it, t being the tensor-parallel size. A token's keys and values take
2 n k e / t bytes. On a CPU each of the engine's replicas takes all of its parts. The estimate errs on the large side:
it takes every dialogue of a pass at full length.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.client_spec import load_spec
from trainers.client_config import BOOTSTRAP
from trainers.config import RunConfig
from trainers.quantization import Quantization
from trainers.trainer_config import zero_stage

GIB = 2**30
MEASURED = "memory.json"  # in a run's folder: bytes at the peak of training
BYTES = {"float32": 4, "bfloat16": 2}
# Of a weight; in 4 bits with a scale for 64 of them, which is itself in 8 bits, with one in fp32 for 256 scales.
QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + (1 + 4 / 256) / 64}
RUNTIME_GPU = 3 * GIB // 2  # a process's CUDA context, its libraries' workspaces and what the allocator can't use
RUNTIME_CPU = GIB // 2  # Python with torch
TILE_TOKENS, TILE_WORDS = 4096, 32768  # of TRL's head; a contract test holds them
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters
CPU_TILES = 8  # without Triton's kernel the head's backward pass keeps so many tensors of a tile's size
REQUIRED_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


class ArchitectureUnknown(Exception):
    """The sizes of a model can't be told; the message says what is missing."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder with grouped-query attention and SwiGLU. ``tied``: the head is the embedding."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    tied: bool = False
    attention_bias: bool = True
    head_dim: int | None = None

    @property
    def q(self) -> int:
        """Width of the queries."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def k(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * (self.head_dim or self.hidden // self.heads)

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block."""
        h, f = self.hidden, self.feed_forward
        return {
            "q_proj": (h, self.q),
            "k_proj": (h, self.k),
            "v_proj": (h, self.k),
            "o_proj": (self.q, h),
            "gate_proj": (h, f),
            "up_proj": (h, f),
            "down_proj": (f, h),
        }

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        block = sum(inputs * outputs for inputs, outputs in self.linear_layers.values()) + 2 * self.hidden
        block += self.q + 2 * self.k if self.attention_bias else 0
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * block + embeddings + self.hidden

    def weight_bytes(self, bytes_each: int, quantization: Quantization) -> int:
        """The frozen weights of a training device, and the layer that is made whole to compute with it."""
        if quantization == "none":
            return self.parameters * bytes_each
        linear = self.layers * sum(inputs * outputs for inputs, outputs in self.linear_layers.values())
        whole = max(inputs * outputs for inputs, outputs in self.linear_layers.values())
        return (self.parameters - linear + whole) * bytes_each + round(linear * QUANTISED_BYTES[quantization])

    def adapter_parameters(self, rank: int, targets: str | list[str]) -> int:
        """Parameters of a LoRA adapter: rank x (inputs + outputs) for each layer that has one."""
        wanted = (
            self.linear_layers
            if targets == "all-linear"
            else {k: self.linear_layers[k] for k in targets if k in self.linear_layers}
        )
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in wanted.values())

    def activation_bytes(self, bytes_each: int, rank: int, row: int) -> int:
        """What one layer keeps of one token of a padded row of ``row`` tokens for the backward pass."""
        kept = 2 * self.hidden + 4 * self.q + 4 * self.feed_forward + 7 * rank + row
        return bytes_each * kept + 8 * self.hidden

    def cache_bytes(self, bytes_each: int) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.k * bytes_each


# As in the models' published config.json.
KNOWN = {
    "qwen2.5-0.5b": Architecture(896, 24, 14, 2, 4864, 151936, tied=True),
    "qwen2.5-1.5b": Architecture(1536, 28, 12, 2, 8960, 151936, tied=True),
    "qwen2.5-3b": Architecture(2048, 36, 16, 2, 11008, 151936, tied=True),
    "qwen2.5-7b": Architecture(3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-14b": Architecture(5120, 48, 40, 8, 13824, 152064),
    "qwen2.5-32b": Architecture(5120, 64, 40, 8, 27648, 152064),
    "qwen2.5-72b": Architecture(8192, 80, 64, 8, 29568, 152064),
    "llama-3.1-8b": Architecture(4096, 32, 32, 8, 14336, 128256, attention_bias=False),
    "llama-3.1-70b": Architecture(8192, 80, 64, 8, 28672, 128256, attention_bias=False),
}
# The small policy is at most this; its own config.json is exact once it is built.
SMALL_POLICY = Architecture(192, 4, 6, 2, 512, 3072, tied=True)
QUANTISED = ("awq", "gptq", "gguf", "int4", "int8", "fp8", "bnb", "4bit", "8bit")


def architecture_of(model: str) -> Architecture:
    """The sizes of a model: from its folder's config.json, or the table of known ids. Raises ArchitectureUnknown."""
    if model == BOOTSTRAP:
        return SMALL_POLICY
    if (config := Path(model) / "config.json").is_file():
        return _from_config(json.loads(config.read_text(encoding="utf-8")), str(config))
    name = model.rpartition("/")[2].lower()
    if any(mark in name for mark in QUANTISED):
        raise ArchitectureUnknown(
            f"{model}: its name speaks of quantised weights, whose size this estimate does not know"
        )
    known = [key for key in KNOWN if f"{name}-".startswith((f"{key}-", f"meta-{key}-"))]
    if not known:
        raise ArchitectureUnknown(
            f"{model}: not among {', '.join(KNOWN)}; give a folder with its config.json as policy.model"
        )
    return KNOWN[known[0]]


def _from_config(config: dict[str, Any], where: str) -> Architecture:
    if missing := [key for key in REQUIRED_KEYS if not isinstance(config.get(key), int)]:
        raise ArchitectureUnknown(f"{where}: lacks {', '.join(missing)}")
    if any("expert" in key and value for key, value in config.items()) or config.get("quantization_config"):
        raise ArchitectureUnknown(
            f"{where}: mixtures of experts and quantised weights are not covered by this estimate"
        )
    return Architecture(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        feed_forward=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
        head_dim=config.get("head_dim"),
    )


@dataclass
class DeviceEstimate:
    """What one device holds, in bytes. ``capacity`` is None where it isn't known."""

    name: str
    parts: dict[str, int]
    capacity: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        """Whether the parts fit and the engine has room for a dialogue; None where the capacity isn't known."""
        return None if self.capacity is None else self.total <= self.capacity and self.parts.get("KV cache", 0) >= 0


def estimate_memory(config: RunConfig, architecture: Architecture) -> list[DeviceEstimate]:
    """One estimate for each device that the configuration names; without any, one for this machine."""
    training, serving = config.devices.training, config.devices.engine
    if not training:
        parts = {**_training_parts(config, architecture), **_cpu_engine_parts(config, architecture)}
        return [DeviceEstimate("this machine", parts, _machine_memory())]
    capacity = round(config.devices.memory_gib * GIB) if config.devices.memory_gib else None
    estimates = []
    for gpu in sorted({*training, *serving}):
        device = DeviceEstimate(f"GPU {gpu}", {}, capacity)
        if gpu in training:
            device.parts |= _training_parts(config, architecture)
        if gpu in serving:
            _add_gpu_engine(device, config, architecture)
        estimates.append(device)
    return estimates


def row_tokens(config: RunConfig) -> int:
    """The longest row that is trained on, in tokens: a dialogue, or its segments where the format has thoughts.

    The last segment fills the context; those before it are taken to grow evenly towards it.
    """
    context = config.policy.context_tokens
    if config.policy.format == "plain":
        return context
    turns = config.dialogue.max_turns or load_spec(config.client.spec).max_turns
    return context * (turns + 1) // 2


def measured_memory(config: RunConfig, model_dir: Path, folder: Path) -> dict[str, Any] | None:
    """For summary.json: what training took at its peak, as ``trainers.peak_memory`` wrote it down, beside the estimate
    of the same; None where nothing was measured. ``of``: allocated, on a GPU, or resident, in a process. The estimate
    is None where it doesn't know the model; what lies outside torch's allocator is no part of it on a GPU.
    """
    path = folder / MEASURED
    if not path.exists():
        return None
    peak = json.loads(path.read_text(encoding="utf-8"))
    of = "allocated" if "allocated" in peak else "resident"
    try:
        parts = _training_parts(config, architecture_of(str(model_dir)))
    except ArchitectureUnknown:
        estimate = None
    else:
        estimate = sum(parts.values()) - (parts["runtime"] if of == "allocated" else 0)
    return {"of": of, "peak_bytes": peak[of], "reserved_bytes": peak.get("reserved"), "estimate_bytes": estimate}


def _training_parts(config: RunConfig, architecture: Architecture) -> dict[str, int]:
    trainer, each = config.trainer, BYTES[config.policy.dtype]
    adapter = architecture.adapter_parameters(config.lora.rank, config.lora.targets)
    # A warm start stands beside the trained adapter as the reference of the KL divergence.
    copies = 2 if config.warm_start.data and trainer.kl else 1
    # ZeRO shares out more with every stage; what a pass needs of stage 3's weights stands whole meanwhile.
    world, stage = len(config.devices.training) or 1, zero_stage(trainer.deepspeed)
    optimizer, gradients, weights = (world if stage >= least else 1 for least in (1, 2, 3))
    live = min(architecture.parameters, LIVE_PARAMETERS) if weights > 1 else 0
    row = row_tokens(config)
    tokens = trainer.micro_batch * row
    if trainer.micro_batch_tokens:
        tokens = min(tokens, max(trainer.micro_batch_tokens, row))
    layer = architecture.activation_bytes(each, config.lora.rank, row)
    if trainer.gradient_checkpointing:
        activations = tokens * (architecture.layers * architecture.hidden * each + layer)
    else:
        activations = tokens * architecture.layers * layer
    return {
        "base weights": architecture.weight_bytes(each, config.policy.quantization) // weights + live * each,
        "adapter": copies * adapter * (4 if each == 4 else 4 + each) // weights,
        "gradients": 4 * adapter // gradients,
        "optimizer": 8 * adapter // optimizer,
        "activations": activations + 2 * each * architecture.feed_forward * tokens,
        "logits": _logits(architecture, each, tokens, on_gpu=bool(config.devices.training)),
        "runtime": RUNTIME_GPU if config.devices.training else RUNTIME_CPU,
    }


def _logits(architecture: Architecture, each: int, tokens: int, on_gpu: bool) -> int:
    """What TRL's head holds while it goes through tokens and vocabulary tile by tile."""
    rows, gradient = min(tokens, TILE_TOKENS), 4 * architecture.hidden * tokens
    if on_gpu:
        return each * rows * TILE_WORDS + gradient
    return 4 * CPU_TILES * rows * min(architecture.vocabulary, TILE_WORDS) + gradient


def _engine_fixed(config: RunConfig, architecture: Architecture) -> dict[str, int]:
    """The engine's weights and adapter slots, which don't depend on how many dialogues run."""
    each = BYTES[config.policy.dtype]
    adapter = architecture.adapter_parameters(config.lora.rank, config.lora.targets)
    return {
        "engine weights": architecture.parameters * each // config.engine.tensor_parallel,
        "adapter slots": config.engine.max_loras * adapter * each,
    }


def _cpu_engine_parts(config: RunConfig, architecture: Architecture) -> dict[str, int]:
    if config.engine.elsewhere or config.engine.kind == "transformers":
        return {}
    fixed = _engine_fixed(config, architecture)
    parts = {**fixed, "KV cache": config.engine.kv_cache_gib * GIB, "engine runtime": RUNTIME_CPU}
    return {name: config.engine.replicas * size for name, size in parts.items()}


def _add_gpu_engine(device: DeviceEstimate, config: RunConfig, architecture: Architecture) -> None:
    """Add the engine's parts. Keys and values get the rest of its share; a negative rest means that it can't start."""
    if config.engine.elsewhere or config.engine.kind == "transformers":
        return
    policy, replicas = config.policy, config.engine.replicas
    per_token = architecture.cache_bytes(BYTES[policy.dtype]) // min(
        config.engine.tensor_parallel, architecture.kv_heads
    )
    wanted = -(-config.dialogue.concurrency // replicas) * policy.context_tokens * per_token
    fixed = {**_engine_fixed(config, architecture), "engine runtime": RUNTIME_GPU}
    cache = wanted
    if device.capacity is not None:
        cache = int(device.capacity * config.engine.gpu_memory_utilization) - sum(fixed.values())
    device.parts |= {**fixed, "KV cache": cache}
    whole = replicas * (max(0, cache) // (per_token * policy.context_tokens))
    device.notes.append(
        f"the KV cache holds {whole} dialogues of {policy.context_tokens} tokens; "
        f"{config.dialogue.concurrency} run at once" + ("" if whole else ": raise engine.gpu_memory_utilization")
    )


def _machine_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
