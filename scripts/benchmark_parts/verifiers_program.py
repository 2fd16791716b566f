"""Plays talks through verifiers. Runs in an environment of its own, which has one release of verifiers in it.

Reads one job a line on stdin (``url``, ``model``, ``system``, ``tokens``, ``talks`` with opening, answers and waits)
and answers each with one line on stdout: seconds of wall clock and turns. verifiers sends text to the chat endpoint.

Releases up to 0.3 have ``MultiTurnEnv``, whose subclass answers the policy. Since 0.4 an agent's ``interaction`` takes
its place: a harness plays each turn against a proxy of verifiers'. The harnesses that come with it start a program for
each turn; the one here makes the same request in this process, as its documentation allows, which is the faster way.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import time
from typing import Any

KEY = "BENCHMARK_KEY"
Job = dict[str, Any]


def sampling_of(job: Job) -> dict[str, Any]:
    """What is asked for with every reply, all of them of the same length."""
    extra = {"ignore_eos": True, "top_k": 0, "return_token_ids": True}
    return {"max_tokens": job["tokens"], "temperature": 1.0, "top_p": 1.0, "seed": 7, "logprobs": True, **extra}


async def play_environment(job: Job) -> tuple[float, int]:
    """All talks through a ``MultiTurnEnv``. Returns seconds and turns; raises RuntimeError when a dialogue failed."""
    vf: Any = importlib.import_module("verifiers.legacy")

    class Talks(vf.MultiTurnEnv):
        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            talk, turn = state["info"], len(state["trajectory"]) - 1
            await asyncio.sleep(talk["waits"][turn])
            answer = [{"role": "user", "content": talk["answers"][turn]}]
            if turn + 1 == len(talk["waits"]):
                state["final_env_response"] = answer
            return answer

    rows = [
        {
            "prompt": [{"role": "system", "content": job["system"]}, {"role": "user", "content": talk["opening"]}],
            "example_id": number,
            "info": talk,
            "answer": "",
        }
        for number, talk in enumerate(job["talks"])
    ]
    dataset = importlib.import_module("datasets").Dataset.from_list(rows[:1])
    environment = Talks(dataset=dataset, rubric=vf.Rubric())
    client = vf.ClientConfig(api_base_url=job["url"], api_key_var=KEY)
    sampling = sampling_of(job)
    names = ("ignore_eos", "top_k", "return_token_ids")
    sampling["extra_body"] = {name: sampling.pop(name) for name in names}
    quiet = {"on_start": _nothing, "on_progress": _nothing, "state_columns": ["trajectory"]}
    started = time.perf_counter()
    done = await environment.generate(rows, client, job["model"], sampling, **quiet)
    seconds = time.perf_counter() - started
    if failed := [row["error"] for row in done["outputs"] if row.get("error")]:
        raise RuntimeError(f"a dialogue failed: {failed[0]}")
    return seconds, sum(len(row["trajectory"]) for row in done["outputs"])


def _nothing(*_: Any) -> None:
    pass


async def play_interactions(job: Job) -> tuple[float, int]:
    """All talks through an agent's interactions. Returns seconds and turns; raises what verifiers raises."""
    vf: Any = importlib.import_module("verifiers.v1")
    clients: Any = importlib.import_module("verifiers.v1.clients")
    runtimes: Any = importlib.import_module("verifiers.v1.runtimes")
    agent = vf.make_agent(
        vf.AgentConfig(
            model=job["model"],
            client=clients.EvalClientConfig(base_url=job["url"], api_key_var=KEY),
            sampling=vf.SamplingConfig(**sampling_of(job)),
            harness={"id": "null"},
            runtime=runtimes.SubprocessConfig(),
        )
    )
    agent.harness = _in_process(vf)

    async def one(number: int, talk: dict[str, Any]) -> int:
        task = vf.Task(vf.TaskData(idx=number, prompt=talk["opening"], system_prompt=job["system"]))
        async with agent.interaction(task) as interaction:
            said = None
            for wait, answer in zip(talk["waits"], talk["answers"], strict=True):
                segment = await interaction.turn(said)
                if segment.terminated:
                    raise RuntimeError(f"a dialogue ended early: {interaction.trace.errors}")
                await asyncio.sleep(wait)
                said = answer
        return int(interaction.trace.num_turns)

    async with agent:
        started = time.perf_counter()
        turns = await asyncio.gather(*(one(number, talk) for number, talk in enumerate(job["talks"])))
        return time.perf_counter() - started, sum(turns)


def _in_process(vf: Any) -> Any:
    openai: Any = importlib.import_module("openai")
    wire: Any = importlib.import_module("verifiers.v1.dialects.chat").message_to_wire
    null: Any = importlib.import_module("verifiers.v1.harnesses.null")
    result: Any = importlib.import_module("verifiers.v1.runtimes").ProgramResult
    chat: dict[str, Any] = {}

    class InProcess(null.NullHarness):
        async def setup(self, runtime: Any) -> None:
            pass

        async def launch(
            self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: Any, **_: Any
        ) -> Any:
            system, prompt = self.resolve_prompt(data)
            said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [wire(m) for m in prompt]
            client = chat.setdefault(endpoint, openai.AsyncOpenAI(base_url=endpoint, api_key="shared"))
            await client.with_options(api_key=secret).chat.completions.create(
                model=ctx.model, messages=[{"role": "system", "content": system}, *said]
            )
            return result(0, "", "")

    return InProcess(null.NullHarnessConfig(id="null"))


async def serve() -> None:
    """Answer one job after the other until stdin ends."""
    play = play_environment if importlib.util.find_spec("verifiers.legacy") else play_interactions
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            seconds, turns = await play(json.loads(line))
            answer: dict[str, Any] = {"seconds": seconds, "turns": turns}
        except Exception as error:  # the benchmark says so and goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(ANSWERS, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    ANSWERS = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    os.environ[KEY] = "none"
    asyncio.run(serve())
