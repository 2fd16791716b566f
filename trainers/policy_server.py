"""The policy server: token ids in, token ids and log-probabilities out, under a named adapter version.

Two engines stand behind it: ``vllm_server`` (its own process) and ``transformers_engine`` (in this process).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

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


class EngineReport(NamedTuple):
    """What a process asked of several servers: requests by URL, how many of them had failed at another one before, and
    which servers take no part, and why."""

    requests: dict[str, int]
    asked_elsewhere: int
    left_out: dict[str, str]


class PolicyServer(Protocol):
    """Serves the base model and the published adapters. Safe to call for many dialogues at once."""

    @property
    def in_process(self) -> bool:
        """Whether each training process has an engine of its own, or all of them share a server."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Of several servers those that take no part, by URL, and why."""
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
        session: int | None = None,
    ) -> Sampled:
        """Sample up to ``max_tokens`` after ``prompt_ids``, under ``adapter`` (a published name, or None: the base).

        Sampling is plain: no top-p, top-k or penalties, so that the log-probabilities are those of the policy. It ends
        at the model's own end tokens and at ``stop_ids``. ``session`` names the dialogue, whose turns are best sampled
        where its prompt is cached; the reply doesn't depend on it. Raises RunError when the engine can't answer.
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

    def follow(self, name: str, left_out: Mapping[str, str]) -> None:
        """Take over that another process has published ``name``, on all servers that this process shares with it but
        those that were ``left_out``."""
        ...

    def report(self) -> EngineReport | None:
        """What was asked of each of several servers since the last report; None where there is one engine."""
        ...

    def close(self) -> None:
        """Give back what the engine holds. May be called twice."""
        ...


class SoleEngine:
    """What a PolicyServer that is one engine in this process has to say of several servers: nothing."""

    in_process = True
    left_out: Mapping[str, str] = MappingProxyType({})

    def follow(self, name: str, left_out: Mapping[str, str]) -> None:
        """No other process publishes for this one."""

    def report(self) -> None:
        """There is one engine."""

    def close(self) -> None:
        """Nothing outlives this process."""


def adapter_name(adapter_dir: Path) -> str:
    """The name of an adapter: its run and its folder, in the characters that every engine takes."""
    path = adapter_dir.resolve()
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{path.parent.parent.name}-{path.name}")


def engine_line(reports: Sequence[EngineReport | None]) -> dict[str, Any]:
    """The ``engine`` key of a line of metrics.jsonl from the reports of all processes; empty where there is nothing."""
    given = [report for report in reports if report]
    if not given:
        return {}
    return {
        "engine": {
            "requests": {url: sum(report.requests[url] for report in given) for url in given[0].requests},
            "asked_elsewhere": sum(report.asked_elsewhere for report in given),
            "left_out": {url: reason for report in given for url, reason in report.left_out.items()},
        }
    }


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
