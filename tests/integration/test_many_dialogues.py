"""64 dialogues at once against a server that fails: they end, and they feel the same as without a fault.

How long they take is measured apart (``pytest -m benchmark``, alone on a machine). There are more dialogues than
places, as in a run: of 64 alone the one that met most hangs would decide.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from envs.client_spec import load_spec
from envs.dialogue import DialoguePlan, run_dialogues
from envs.models.endpoint import Endpoint
from envs.models.endpoint_spec import BreakerSettings, EndpointSpec
from envs.models.model_client import Ask, ChatMessage, ModelClient, ModelError
from envs.trajectory import ClientTurn, Generation, Message, Stop, Trajectory
from tests.scripted_server import Faults, Latency, ScriptedServer
from tests.unit.dialogues import card

pytestmark = pytest.mark.integration

WHO = card("en-who")
SPEC = load_spec("appraisal-v1").model_copy(update={"max_turns": 2})
IN_FLIGHT = 64
FAULTS = Faults.evenly(0.2, seed=3)
LATENCY = Latency(mean=0.3, spread=0.1)  # 99 % of the answers within 0.38 s
BREAKER = BreakerSettings(failures=8, open_seconds=0.25, max_open_seconds=0.5)
RE_ASKS = 4
FEELING = {
    "type": "object",
    "properties": {"change": {"type": "integer", "minimum": -10, "maximum": 10}, "why": {"type": "string"}},
    "required": ["change", "why"],
    "additionalProperties": False,
}
SPEECH = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


class Feeling:
    """A client that asks a model twice a turn: first what it feels, then what it says."""

    def __init__(self, name: str, model: ModelClient) -> None:
        self._name, self._model, self._emotion = name, model, 40.0

    async def open(self) -> ClientTurn:
        return ClientTurn(text=f"I am {self._name}.", emotion=40, written_change=0, change=0)

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        said = [ChatMessage(role="user", content=message.text) for message in history]
        change = (await self._json(said, FEELING))["change"]
        text = (await self._json([*said, ChatMessage(role="user", content=f"felt {change}")], SPEECH))["text"]
        before, self._emotion = self._emotion, min(max(self._emotion + change, 0), 100)
        return ClientTurn(
            text=text, emotion=self._emotion, written_change=change, change=self._emotion - before, stop=None
        )

    async def _json(self, said: Sequence[ChatMessage], schema: dict[str, Any]) -> dict[str, Any]:
        for attempt in range(1 + RE_ASKS):
            answer = await self._model.ask(Ask(messages=tuple(said), answer_schema=schema, attempt=attempt))
            try:
                made = json.loads(answer.text)
            except json.JSONDecodeError:
                continue
            if abs(made.get("change", 0)) <= 10:
                return made
        raise ModelError(f"no usable answer in {1 + RE_ASKS} asks")


class Echoing:
    async def reply(self, messages: Sequence[Message]) -> Generation:
        return Generation(text=f"You say: {messages[-1].text}")


@dataclass
class Ran:
    trajectories: list[Trajectory]
    seconds: float
    endpoint: Endpoint


def run(server: ScriptedServer, dialogues: int, deadline: float, request_timeout: float) -> Ran:
    spec = EndpointSpec(
        base_url=server.url,
        model="scripted",
        concurrency=IN_FLIGHT,
        request_timeout=request_timeout,
        backoff_seconds=0.1,
        max_backoff_seconds=2.0,
        breaker=BREAKER,
    )
    endpoint = Endpoint(spec)
    names = [f"dialogue-{number:04d}" for number in range(dialogues)]
    plans = [DialoguePlan(name, WHO, SPEC, 7, Feeling(name, endpoint.dialogue(deadline)), Echoing()) for name in names]

    async def all_of_them() -> list[Trajectory]:
        try:
            return await run_dialogues(plans, IN_FLIGHT, deadline)
        finally:
            await endpoint.close()

    began = time.monotonic()
    trajectories = asyncio.run(all_of_them())
    return Ran(trajectories, time.monotonic() - began, endpoint)


def check_outage(
    dialogues: int, outage: float, request_timeout: float, caplog: pytest.LogCaptureFixture
) -> tuple[float, float]:
    """Check all but the clock. Returns seconds without and with the faults and the outage."""
    with ScriptedServer(latency=LATENCY) as server:
        quiet = run(server, dialogues, 120, request_timeout)
    with ScriptedServer(latency=LATENCY, faults=FAULTS) as server, caplog.at_level(logging.WARNING):
        caplog.clear()
        server.outage(after=2.0, seconds=outage)
        rough = run(server, dialogues, outage + 120, request_timeout)
        outcomes = server.outcomes
        told = [record.getMessage() for record in caplog.records if record.name == "envs.models.breaker"]
    with ScriptedServer(latency=LATENCY) as server:  # before and after, as others use the machine too
        again = run(server, dialogues, 120, request_timeout)
    assert {each.error for each in quiet.trajectories + again.trajectories} == {None}
    fault_free = (quiet.seconds + again.seconds) / 2

    endpoint, openings = rough.endpoint, rough.endpoint.breaker.openings
    opening = max(openings, key=lambda each: each.seconds or 0)  # a stall of the machine may open it for a moment
    print(
        f"\n{dialogues} dialogues, {IN_FLIGHT} at once: {quiet.seconds:.1f} and {again.seconds:.1f} s without a fault; "
        f"{rough.seconds:.1f} s with an outage of {outage:g} s, "
        f"{(rough.seconds - outage) / fault_free:.2f} times that beside the outage\n"
        f"{endpoint.usage}\nfailures {dict(endpoint.failures)}\nserver {dict(outcomes)}\n{opening}"
    )
    assert {"ok", "rate_limit", "server_error", "hang", "empty", "malformed", "out_of_range"} == set(outcomes)
    failed = [each.error for each in rough.trajectories if each.stop is Stop.ERROR]
    assert len(failed) <= 0.01 * dialogues, failed
    for without, with_faults in zip(quiet.trajectories, rough.trajectories, strict=True):
        if with_faults.error is None:
            assert with_faults.emotions == without.emotions
            assert with_faults.messages == without.messages
    assert outage - 1 <= (opening.seconds or 0) <= outage + BREAKER.max_open_seconds + 2 * request_timeout
    assert len(told) == 2 * len(openings)
    assert any(line.endswith("open after 8 failures in a row: connection error") for line in told)
    assert f"closed after {opening.seconds:.1f} s and {opening.probes} probes" in "\n".join(told)
    # Those in flight, and a probe after 0.25 s and then every 0.5 s.
    assert endpoint.failures["connection error"] <= IN_FLIGHT + 1 + outage / BREAKER.max_open_seconds
    return fault_free, rough.seconds


def test_dialogues_go_through_faults_and_a_short_outage(caplog: pytest.LogCaptureFixture) -> None:
    check_outage(dialogues=128, outage=3.0, request_timeout=4.0, caplog=caplog)


@pytest.mark.benchmark
def test_dialogues_go_through_faults_and_an_outage_of_a_minute_in_time(caplog: pytest.LogCaptureFixture) -> None:
    fault_free, seconds = check_outage(dialogues=768, outage=60.0, request_timeout=0.8, caplog=caplog)
    assert seconds <= 1.5 * fault_free + 60.0
