"""The policy server: token ids in, token ids and log-probabilities out, under a named adapter version.

Two engines stand behind it: ``vllm_server`` (its own process) and ``transformers_engine`` (in this process).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from envs.errors import RunError


@dataclass(frozen=True)
class Sampled:
    """One sampled reply. ``ids`` (T,) include the end-of-turn where one was sampled; ``logprobs`` (T,) in nats.

    ``prompt_ids`` are the ids that the engine says it was given; ``finish_reason`` is "length" when it was cut off.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


class PolicyServer(Protocol):
    """Serves the base model and the published adapters. Safe to call for many dialogues at once."""

    @property
    def in_process(self) -> bool:
        """Whether each training process has an engine of its own, or all of them share a server."""
        ...

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        adapter: str | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        stop_ids: Sequence[int] = (),
    ) -> Sampled:
        """Sample up to ``max_tokens`` after ``prompt_ids``, under ``adapter`` (a published name, or None: the base).

        Sampling is plain: no top-p, top-k or penalties, so that the log-probabilities are those of the policy. It ends
        at the model's own end tokens and at ``stop_ids``. Raises RunError when the engine can't answer.
        """
        ...

    def publish(self, adapter_dir: Path) -> str:
        """Load a complete adapter folder and return its name. One version, one new folder, one new name.

        The files must stay as they are until the name is retired. Raises RunError when the name is taken or loading
        fails.
        """
        ...

    def retire(self, name: str) -> None:
        """Forget a published adapter; its files may be deleted afterwards."""
        ...

    def close(self) -> None:
        """Give back what the engine holds. May be called twice."""
        ...


def adapter_name(adapter_dir: Path) -> str:
    """The name of an adapter: its run and its folder, in the characters that every engine takes."""
    path = adapter_dir.resolve()
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{path.parent.parent.name}-{path.name}")


def checked(sent: Sequence[int], sampled: Sampled) -> Sampled:
    """``sampled`` itself, or RunError when the engine sampled after other ids than were sent or gave no likelihood."""
    if tuple(sent) != sampled.prompt_ids:
        raise RunError(
            f"the engine sampled after {len(sampled.prompt_ids)} prompt tokens that are not the {len(sent)} that were "
            "sent; it must not tokenise, truncate or pad prompts itself"
        )
    if not sampled.ids or len(sampled.ids) != len(sampled.logprobs):
        raise RunError(f"the engine returned {len(sampled.ids)} tokens and {len(sampled.logprobs)} log-probabilities")
    if not all(math.isfinite(logprob) for logprob in sampled.logprobs):
        raise RunError("the engine returned a log-probability that is no number: the policy's weights have diverged")
    return sampled
