"""The policy server in this process, on transformers: where vLLM can't be installed, or every bit counts.

One request is decoded at a time with a generator of its own, so a reply depends on its prompt, adapter and seed alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from envs.errors import InputError, RunError
from trainers.policy_server import Sampled, SoleEngine, adapter_name, checked


class TransformersEngine(SoleEngine):
    """Serves a copy of the base model of its own; see PolicyServer."""

    def __init__(self, model_dir: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
            self._model: Any = model.to(device).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"policy.model: {model_dir} can't be loaded: {error}") from error
        self._device = device
        declared = self._model.generation_config.eos_token_id
        self._end_ids = {declared} if isinstance(declared, int) else set(declared or ())
        self._names: set[str] = set()
        self._lock = threading.Lock()

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        adapter: str | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        stop_ids: Sequence[int] = (),
        session: int | None = None,
    ) -> Sampled:
        """Sample one reply; see PolicyServer. Temperature 0 takes the likeliest token."""
        if adapter is not None and adapter not in self._names:
            raise RunError(
                f"adapter {adapter!r} is not published; published are: {', '.join(sorted(self._names)) or 'none'}"
            )
        ends = self._end_ids | set(stop_ids)
        sampled = await asyncio.to_thread(
            self._decode, list(prompt_ids), adapter, torch.Generator().manual_seed(seed), max_tokens, temperature, ends
        )
        return checked(prompt_ids, sampled)

    def publish(self, adapter_dir: Path) -> str:
        """Load an adapter folder beside the others; see PolicyServer."""
        name = adapter_name(adapter_dir)
        if name in self._names:
            raise RunError(f"adapter {name!r} is published already; every version needs a name of its own")
        with self._lock:
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(str(adapter_dir), adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, str(adapter_dir), adapter_name=name).eval()
        self._names.add(name)
        return name

    def retire(self, name: str) -> None:
        """Drop an adapter's weights."""
        with self._lock:
            self._names.remove(name)
            if self._names:  # PEFT warns of an active adapter that goes
                self._model.set_adapter(next(iter(self._names)))
            self._model.delete_adapter(name)

    @torch.inference_mode()
    def _decode(
        self,
        prompt_ids: list[int],
        adapter: str | None,
        generator: torch.Generator,
        max_tokens: int,
        temperature: float,
        ends: set[int],
    ) -> Sampled:
        ids: list[int] = []
        logprobs: list[float] = []
        fed, cache = prompt_ids, None
        with self._lock, self._under(adapter):
            while len(ids) < max_tokens and not (ids and ids[-1] in ends):
                output = self._model(
                    input_ids=torch.tensor([fed], device=self._device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                scores = output.logits[0, -1].float().cpu()
                distribution = torch.log_softmax(scores / (temperature or 1.0), dim=-1)
                token = int(
                    torch.multinomial(distribution.exp(), 1, generator=generator) if temperature else scores.argmax()
                )
                ids.append(token)
                logprobs.append(float(distribution[token]))
                fed, cache = [token], output.past_key_values
        reason = "stop" if ids[-1] in ends else "length"
        return Sampled(tuple(ids), tuple(logprobs), tuple(prompt_ids), reason)

    @contextmanager
    def _under(self, adapter: str | None) -> Iterator[None]:
        if adapter is not None:
            self._model.set_adapter(adapter)
            yield
        elif isinstance(self._model, PeftModel):
            with self._model.disable_adapter():
                yield
        else:
            yield
