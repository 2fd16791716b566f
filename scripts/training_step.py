"""What ``benchmark_gpu`` measures with torch: the real trainer's steps on a random model, and a matrix product.

Nothing is sampled: the rows are made of random tokens in the shape of dialogues, and everything after them is the code
that a run goes through, from the likelihoods of the rows to the optimizer's step.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from transformers.trainer_utils import SaveStrategy
from trl.trainer.utils import selective_log_softmax

from envs.trajectory import ClientTurn, Score, Stop, Trajectory
from trainers.background import BackgroundLoop
from trainers.credit import CreditAssigner, GroupRelative
from trainers.curriculum import Rotation
from trainers.memory import Architecture
from trainers.policy_server import PolicyServer, SoleEngine
from trainers.rollouts import Played, Rollout, RolloutWorker
from trainers.samples import Sample
from trainers.train import TrainSettings, lora_config, training_arguments
from trainers.trainer import DialogueTrainer

TIMED_PRODUCTS = 20


def device() -> str:
    """Where to measure: the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_facts() -> dict[str, Any]:
    """Name, bytes and software of the device; ``outside_bytes`` is what is in use beside torch's allocator."""
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "name": None, "memory_bytes": None}
    if torch.cuda.is_available():
        torch.ones(1, device="cuda").sum().item()
        facts["name"], facts["memory_bytes"] = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    return facts | {"outside_bytes": _outside()}


def matmul_rate(rows: int, inner: int, columns: int) -> float | None:
    """FLOP/s of a bf16 product of random (rows, inner) and (inner, columns): median of 20. None without a GPU."""
    if not torch.cuda.is_available():
        return None
    left = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device="cuda", dtype=torch.bfloat16)
    seconds = []
    for turn in range(3 + TIMED_PRODUCTS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(left, right)
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            seconds.append(start.elapsed_time(end) / 1000)
    return 2 * rows * inner * columns / statistics.median(seconds)


def random_model(sizes: Architecture, dtype: str, longest: int, on: str | None = None) -> Qwen2ForCausalLM:
    """A Qwen2 of these sizes with random weights, made on the device ``on`` (None: the GPU where there is one).

    ``longest``: positions that it must know.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        tie_word_embeddings=sizes.tied,
        max_position_embeddings=longest,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        dtype=dtype,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(on or device()):
            return Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


class _Rows:
    """Stands for the rollouts: every step brings the same rows, as if just sampled and scored."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        opening = ClientTurn(text="", emotion=40, written_change=0, change=0)
        blank = {"card_id": "random", "card_hash": "", "spec": "", "spec_hash": "", "seed": 0, "turns": ()}
        count = self.group_size = self.concurrency = len(samples)
        self.server = cast(PolicyServer, _NoServer())
        self._rollout = Rollout(
            trajectories=tuple(
                Trajectory(dialogue_id=f"random-{row}", opening=opening, stop=Stop.TURN_LIMIT, **blank)
                for row in range(count)
            ),
            scores=tuple(Score(name="total", value=row / count) for row in range(count)),
            samples=tuple(samples),
            usages=(None,) * count,
            rollout_seconds=0.0,
            score_seconds=0.0,
        )

    async def play(self, *_: Any) -> Played:
        return Played(self._rollout.trajectories, self._rollout.usages)

    async def score(self, *_: Any) -> Rollout:
        return self._rollout


class _NoServer(SoleEngine):
    """Takes adapters and samples nothing."""

    def publish(self, adapter_dir: Path) -> str:
        return adapter_dir.name

    def retire(self, name: str) -> None:
        pass


class _Trainer(DialogueTrainer):
    """The trainer, with marks between the likelihoods and the update; ``full_logits`` leaves the fused head out."""

    full_logits = False
    on_likelihoods: Callable[[dict[str, float]], None] = staticmethod(lambda seconds: None)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        self.on_likelihoods(self.step_metrics["seconds"])
        return batch

    def _get_per_token_logps_and_entropies(self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int,
                                           batch_size: int | None = None, **given: Any) -> Any:  # fmt: skip
        if not self.full_logits:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **given
            )
        found = []
        for rows, mask in zip(*(x.split(batch_size or len(x)) for x in (input_ids, attention_mask)), strict=True):
            with self.accelerator.autocast():
                logits = model(input_ids=rows, attention_mask=mask).logits[:, -logits_to_keep - 1 : -1]
            found.append(selective_log_softmax(logits.float() / self.temperature, rows[:, -logits_to_keep:]))
        logprobs = torch.cat(found)
        return logprobs, torch.zeros_like(logprobs), None


class _Marks(TrainerCallback):
    """Seconds and peaks of each part of each step. Bytes are None without a GPU."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step begins with the likelihoods of its rows."""
        self._start()
        self.steps.append({"resident_bytes": _allocated()})

    def on_likelihoods(self, seconds: dict[str, float]) -> None:
        """Likelihoods under policy and reference are there; forward and backward begin."""
        self._mark("likelihoods")
        self.steps[-1] |= {"publish_seconds": seconds["publish"], "likelihoods_seconds": seconds["likelihoods"]}

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Gradients are there, and clipped."""
        self._mark("gradients")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The weights have moved."""
        self._mark("optimizer")

    def _mark(self, part: str) -> None:
        _finish()
        seconds = time.perf_counter() - self._started
        self.steps[-1] |= {f"{part}_seconds": seconds, f"{part}_peak_bytes": _allocated(peak=True)}
        self._start()

    def _start(self) -> None:
        _finish()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()


def _finish() -> None:
    """Wait until the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _allocated(peak: bool = False) -> int | None:
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


def training_steps(
    settings: TrainSettings, sizes: Architecture, samples: Sequence[Sample], run_dir: Path, full_logits: bool = False
) -> dict[str, Any]:
    """Train ``settings.steps`` steps on ``samples`` and return medians over all steps but the first.

    Seconds of a step's likelihoods, gradients and optimizer, the peak of each in bytes, what is resident between steps,
    and ``reserved_bytes``, the most that the allocator took. Raises what torch raises, out of memory included.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    left_over, marks = _allocated(), _Marks()
    with BackgroundLoop() as loop:
        trainer = random_trainer(settings, sizes, samples, run_dir, loop)
        trainer.full_logits, trainer.on_likelihoods = full_logits, marks.on_likelihoods
        trainer.add_callback(marks)
        trainer.train()
    timed = marks.steps[1:]
    found = {key: _median([step[key] for step in timed]) for key in timed[0]}
    return found | {
        "left_over_bytes": left_over,
        "gradients_seconds_each": [step["gradients_seconds"] for step in timed],
        "reserved_bytes": torch.cuda.memory_reserved() if torch.cuda.is_available() else None,
        "outside_bytes": _outside(),
    }


def _median(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return statistics.median(measured) if measured else None


def _outside() -> int | None:
    """Bytes in use on the device beside torch's allocator: context, libraries, other processes."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def random_trainer(
    settings: TrainSettings,
    sizes: Architecture,
    samples: Sequence[Sample],
    run_dir: Path,
    loop: BackgroundLoop,
    credit: CreditAssigner | None = None,
) -> _Trainer:
    """The trainer on a random model of these sizes, with ``samples`` for every rollout; credit: None: by group."""
    args = training_arguments(settings, run_dir)
    args.model_init_kwargs, args.save_strategy = None, SaveStrategy.NO
    words = Tokenizer(models.WordLevel({"end": 0, "word": 1}, unk_token="word"))
    trainer = _Trainer(
        model=random_model(sizes, settings.dtype, settings.sampling.max_context),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["random"] * settings.steps}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end", pad_token="end"),
        peft_config=lora_config(settings),
        worker=cast(RolloutWorker, _Rows(samples)),
        credit=credit or GroupRelative(settings.group_size),
        schedule=Rotation(["random"], "", settings.seed, settings.cards_per_step),
        loop=loop,
        run_dir=run_dir,
        limits=settings.limits,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
