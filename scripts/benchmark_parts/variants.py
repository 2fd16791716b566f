"""Two ways to play the talks: ours, where no dialogue waits for another, and lock-step, as a plain rollout_func does.

Both keep token ids and concatenate them, and sample from the same server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from envs.dialogue import DialoguePlan, run_dialogues
from envs.errors import RunError
from envs.hashing import derived_seed
from envs.trajectory import Message, Trajectory
from scripts.benchmark_parts.engine import (
    FIXED_LENGTH,
    BenchmarkServer,
    check_length,
    forget_prefixes,
    prefix_counters,
)
from scripts.benchmark_parts.machine import Others, settle
from scripts.benchmark_parts.work import Played, StubClient, Talk, spec_of
from trainers.chat_template import ChatTemplate
from trainers.policy import PolicySupporter, Sampling
from trainers.policy_server import PolicyServer
from trainers.vllm_server import BASE_NAME

SEED = 7


@dataclass(frozen=True)
class Bench:
    """What every variant shares: the server, the policy's template, the system prompt in it, and tokens of a reply."""

    server: BenchmarkServer
    template: ChatTemplate
    system_prompt: str
    tokens: int
    runner: asyncio.Runner


def plans_for(
    work: Sequence[Talk], server: PolicyServer, template: ChatTemplate, sampling: Sampling, adapter: str | None
) -> list[DialoguePlan]:
    """The talks as dialogues of ours."""
    plans = []
    for talk in work:
        seed = derived_seed(SEED, talk.number)
        supporter = PolicySupporter(server, template, adapter, seed, sampling)
        name = f"talk-{talk.number:04d}"
        plans.append(DialoguePlan(name, talk.card, spec_of(len(talk.waits)), seed, StubClient(talk), supporter))
    return plans


def play_ours(
    bench: Bench, work: Sequence[Talk], in_flight: int | None = None, adapter: str | None = None, cold: bool = True
) -> Played:
    """Our rollouts: each dialogue goes on as soon as its client has answered. Raises RunError when one fails."""
    plans = plans_for(work, bench.server, bench.template, Sampling(max_tokens=bench.tokens), adapter)

    async def all_of_them() -> float:
        started = time.perf_counter()
        played = await run_dialogues(plans, in_flight or len(plans))
        seconds = time.perf_counter() - started
        check_played(played)
        return seconds

    return counted(bench, work, all_of_them, own_prompts=True, cold=cold)


def play_stream(bench: Bench, work: Sequence[Talk], in_flight: int) -> dict[str, float | None]:
    """Our rollouts with more dialogues than places: turns, and the seconds that they took, while every place was taken.

    Counted are the dialogues that ended after the first ``in_flight`` had and before the last ``in_flight`` did.
    """
    plans = plans_for(work, bench.server, bench.template, Sampling(max_tokens=bench.tokens), None)
    ended: list[float] = []

    async def all_of_them() -> None:
        check_played(await run_dialogues(plans, in_flight, on_done=lambda _: ended.append(time.perf_counter())))

    forget_prefixes(bench.server)
    settle()
    with Others() as others:
        bench.runner.run(all_of_them())
    return {**steady(ended, in_flight, len(work[0].waits)), "others": others.share}


def steady(ended: Sequence[float], in_flight: int, turns: int) -> dict[str, float]:
    """Dialogues, turns and seconds between the ends of the first and of the last dialogue that count."""
    first, last = in_flight - 1, len(ended) - in_flight - 1
    return {"dialogues": last - first, "turns": (last - first) * turns, "seconds": ended[last] - ended[first]}


def check_played(played: Sequence[Trajectory]) -> None:
    """Raise RunError with the reason of the first dialogue that failed: a broken one would count as a fast one."""
    if failed := next((trajectory.error for trajectory in played if trajectory.error), None):
        raise RunError(f"a dialogue of the benchmark failed: {failed}")


def play_lock_step(bench: Bench, work: Sequence[Talk], together: bool = False) -> Played:
    """All dialogues sample in one batched request, then each client is asked in turn (``together``: all at once)."""
    return counted(bench, work, lambda: _lock_step(bench, work, together), own_prompts=True)


async def _lock_step(bench: Bench, work: Sequence[Talk], together: bool) -> float:
    template, server = bench.template, bench.server
    clients, histories = [StubClient(talk) for talk in work], [[] for _ in work]
    async with httpx.AsyncClient(timeout=600) as http:
        started = time.perf_counter()
        prompts = [template.opening((await client.open()).text) for client in clients]
        for turn in range(len(work[0].waits)):
            replies = await sample_batch(http, bench, prompts, turn)
            for history, ids in zip(histories, replies, strict=True):
                history.append(Message(speaker="supporter", text=template.heard(ids)))
            if together:
                asked = [client.reply(history) for client, history in zip(clients, histories, strict=True)]
                answers = list(await asyncio.gather(*asked))
            else:
                answers = [await client.reply(history) for client, history in zip(clients, histories, strict=True)]
            for row, (ids, answer) in enumerate(zip(replies, answers, strict=True)):
                forced = [] if ids[-1] == template.end_of_turn else [template.end_of_turn]
                server.ideal.learn(BASE_NAME, [*prompts[row], *ids[:-1]])
                prompts[row] = [*prompts[row], *ids, *forced, *template.following(answer.text)]
                histories[row].append(Message(speaker="client", text=answer.text))
        return time.perf_counter() - started


async def sample_batch(
    http: httpx.AsyncClient, bench: Bench, prompts: Sequence[Sequence[int]], turn: int
) -> list[list[int]]:
    """One request for the replies to all prompts, of fixed length, with the log-probabilities that training needs."""
    for prompt in prompts:
        bench.server.ideal.ask(BASE_NAME, prompt)
    request = {
        "model": BASE_NAME,
        "prompt": [list(prompt) for prompt in prompts],
        "max_tokens": bench.tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "seed": derived_seed(SEED, turn),
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }
    response = await http.post(f"{bench.server.url}/v1/completions", json=request | FIXED_LENGTH)
    if response.is_error:
        raise RunError(f"the server refused a batch of {len(prompts)} prompts: {response.text[:300]}")
    choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    for choice in choices:
        check_length(choice["token_ids"], bench.tokens)
    return [choice["token_ids"] for choice in choices]


def counted(
    bench: Bench,
    work: Sequence[Talk],
    play: Callable[[], Coroutine[Any, Any, float]],
    own_prompts: bool,
    cold: bool = True,
) -> Played:
    """Run ``play`` (a coroutine function that returns its seconds) between two looks at the prefix cache."""
    if cold:
        forget_prefixes(bench.server)
    ideal_before = bench.server.ideal.tokens
    settle()
    hits, queries = prefix_counters(bench.server.url)
    with Others() as others:
        seconds = bench.runner.run(play())
    more_hits, more_queries = prefix_counters(bench.server.url)
    return Played(
        dialogues=len(work),
        turns=sum(len(talk.waits) for talk in work),
        seconds=seconds,
        waited=sum(sum(talk.waits) for talk in work),
        prefix_hits=more_hits - hits,
        prefix_queries=more_queries - queries,
        prefix_ideal=bench.server.ideal.tokens - ideal_before if own_prompts else None,
        others=others.share,
    )
