"""TRL's own multi-turn path: GRPOTrainer with ``environment_factory``, where the client speaks as a tool.

TRL's own: the trainer, its chat template and tool schema, tokenising, the tool loop that calls one environment after
the other and then generates for all, parsing of calls, masks. Substituted, because TRL's server mode needs CUDA and
NCCL: the object that generates, which here sends the whole batch in one request to the benchmark's server; and, because
the small policy calls no tools, the text that it sampled, which is exchanged for a call. After the last answer TRL
generates once more; that request is left out, so that all variants sample as many tokens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import httpx
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import qwen2_5_chat_template
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from scripts.benchmark_parts.variants import Bench, counted, sample_batch
from scripts.benchmark_parts.work import GROUP, Played, Talk

CALL = '<tool_call>\n{"name": "speak", "arguments": {"text": "I hear you."}}\n</tool_call>'


def play_trl(bench: Bench, work: Sequence[Talk], model_dir: str) -> Played:
    """TRL's loop over the talks. Only its generation is timed: neither the likelihoods nor the rewards after it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(bench, work, model_dir, folder)

        async def generate() -> float:  # TRL's loop is not asynchronous, and starts loops of its own
            rows = [_row(bench, talk) for talk in work]
            await asyncio.to_thread(trainer._generate_and_score_completions, rows)
            return trainer.generation_seconds

        played = counted(bench, work, generate, own_prompts=False)
    calls = sum(environment.turn for environment in trainer.environments or ())
    if calls != played.turns:
        raise RuntimeError(f"TRL's loop asked the clients {calls} times, not {played.turns}")
    return played


class Environment:
    """A client as TRL wants it: ``reset`` at the beginning, and one method that the policy calls as a tool."""

    def __init__(self) -> None:
        self.turn = 0

    def reset(self, **row: Any) -> None:
        """Take the place of the row's client, which has spoken in the prompt."""
        self.turn, self._answers, self._waits = 0, row["answers"], row["waits"]

    def speak(self, text: str) -> str:
        """
        Say something to the person who is talking with you.

        Args:
            text: What you say.

        Returns:
            What the person answers.
        """
        turn, self.turn = self.turn, self.turn + 1
        time.sleep(self._waits[turn])
        return str(self._answers[turn])


class _Timed(GRPOTrainer):
    """The trainer, with a clock around what TRL calls generation: sampling, tool calls, masks."""

    generation_seconds = 0.0

    def _generate(self, prompts: list[Any]) -> Any:
        started = time.perf_counter()
        generated = super()._generate(prompts)
        self.generation_seconds = time.perf_counter() - started
        return generated


class _Generation:
    """Stands where TRL keeps its vLLM client: samples a batch in one request, and puts calls in the replies' place."""

    def __init__(self, bench: Bench, turns: int, call_ids: list[int]) -> None:
        self._bench, self._turns, self._call_ids, self._turn = bench, turns, call_ids, 0

    def sync_weights(self) -> None:
        """The server holds the weights already."""

    def generate(self, prompts: list[list[int]], **_: Any) -> tuple[Any, list[list[int]], list[Any], None]:
        """Prompt ids, reply ids, log-probabilities (as lists of top-1) and nothing, as TRL's own object returns."""
        turn, self._turn = self._turn, self._turn + 1
        if turn >= self._turns:
            ids = [self._call_ids[-1:]] * len(prompts)
        else:
            asyncio.run(self._sample(prompts, turn))
            ids = [list(self._call_ids) for _ in prompts]
        return prompts, ids, [[[0.0]] * len(row) for row in ids], None

    async def _sample(self, prompts: list[list[int]], turn: int) -> None:
        async with httpx.AsyncClient(timeout=600) as http:
            await sample_batch(http, self._bench, prompts, turn)


def _row(bench: Bench, talk: Talk) -> dict[str, Any]:
    prompt = [{"role": "system", "content": bench.system_prompt}, {"role": "user", "content": talk.opening}]
    return {"prompt": prompt, "answers": list(talk.answers), "waits": list(talk.waits)}


def _trainer(bench: Bench, work: Sequence[Talk], model_dir: str, folder: str) -> _Timed:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    tokenizer.chat_template = qwen2_5_chat_template
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    turns, group = len(work[0].waits), min(GROUP, len(work))
    arguments = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=group,
        steps_per_generation=len(work) // group,
        num_generations=group,
        max_completion_length=model.config.max_position_embeddings,
        max_tool_calling_iterations=turns,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = _Timed(
        model=model,
        args=arguments,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([_row(bench, talk) for talk in work]),
        processing_class=tokenizer,
        environment_factory=Environment,
    )
    call_ids = [*tokenizer.encode(CALL, add_special_tokens=False), tokenizer.eos_token_id]
    trainer.use_vllm, trainer.vllm_mode = True, "server"
    trainer.vllm_generation = _Generation(bench, turns, call_ids)  # type: ignore[assignment]
    trainer._last_loaded_step = 0
    return trainer


def call_length(model_dir: str) -> int:
    """Tokens of the call that stands in the place of each sampled reply, its end included."""
    return len(AutoTokenizer.from_pretrained(model_dir).encode(CALL, add_special_tokens=False)) + 1
