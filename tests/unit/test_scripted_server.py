"""The scripted server: its answers fit the schema, its faults come at their share, its outage ends."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.schema_filling import fill, spoil_range
from tests.scripted_server import Faults, Latency, ScriptedServer, schema_script

SCHEMA = {"type": "object", "properties": {"change": {"type": "integer", "minimum": -10, "maximum": 10}}}
REQUEST = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=3, max_length=12)
    weight: float = Field(gt=0, lt=1)


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mood: Literal["low", "even", "high"]
    version: Literal["v1"]
    sure: bool
    parts: list[Part] = Field(min_length=2, max_length=4)
    change: int = Field(ge=-10, le=10)
    note: str | None


@given(st.text())
def test_what_is_filled_in_fits_the_schema_and_is_the_same_each_time(seed: str) -> None:
    schema = Whole.model_json_schema()
    Whole.model_validate(fill(schema, seed))
    assert fill(schema, seed) == fill(schema, seed)


@given(st.text())
def test_a_spoiled_number_does_not_fit(seed: str) -> None:
    schema = Whole.model_json_schema()
    with pytest.raises(ValidationError, match="less than"):
        Whole.model_validate(spoil_range(schema, fill(schema, seed)))
    assert spoil_range({"type": "object", "properties": {"text": {"type": "string"}}}, {"text": "a"}) is None


def test_a_schema_that_can_not_be_met_is_refused() -> None:
    with pytest.raises(ValueError, match="can't fill a schema with pattern"):
        fill({"type": "string", "pattern": "^a"}, "seed")


def test_an_answer_depends_on_the_messages_and_the_schema_and_not_on_the_seed() -> None:
    request = REQUEST | {"response_format": {"json_schema": {"schema": SCHEMA}}}
    assert schema_script(request) == schema_script(request | {"seed": 8})
    other = request | {"messages": [{"role": "user", "content": "Bye"}]}
    assert schema_script(request) != schema_script(other)
    assert schema_script(REQUEST) != schema_script(REQUEST | {"messages": other["messages"]})


def outcomes(order: Callable[[range], Any]) -> tuple[dict[str, int], dict[int, list[int]]]:
    """What the server counted, and the statuses that each seed met, with every request sent twice."""
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
    with ScriptedServer(faults=Faults(0.1, 0.2, 0.0, 0.1, 0.1, 0.1)) as server, httpx.Client() as client:
        statuses: dict[int, list[int]] = {seed: [] for seed in range(400)}
        for seed in [*order(range(400)), *order(range(400))]:
            reply = client.post(f"{server.url}/chat/completions", json=REQUEST | form | {"seed": seed})
            statuses[seed].append(reply.status_code)
        return dict(server.outcomes), statuses


def test_each_fault_comes_at_its_share_and_does_not_depend_on_who_comes_first() -> None:
    forwards = outcomes(iter)
    assert forwards == outcomes(reversed)
    for name, share in {"rate_limit": 0.1, "server_error": 0.2, "empty": 0.1, "malformed": 0.1, "ok": 0.4}.items():
        assert abs(forwards[0][name] - 800 * share) < 4 * math.sqrt(800 * share * (1 - share))
    assert any(first != second for first, second in forwards[1].values()), "another try is another draw"


def test_a_latency_has_the_mean_that_it_names() -> None:
    steps = [(number + 0.5) / 10_000 for number in range(10_000)]
    assert sum(Latency(0.25, 0.3).drawn(step) for step in steps) / 10_000 == pytest.approx(0.25, rel=0.01)
    assert Latency().drawn(0.5) == 0


@pytest.mark.parametrize("refuse", [True, False])
def test_an_outage_begins_and_ends_on_the_same_port(refuse: bool) -> None:
    def answered(client: httpx.Client) -> bool:
        try:
            return client.post(f"{server.url}/chat/completions", json=REQUEST).is_success
        except httpx.TransportError:
            return False

    with ScriptedServer() as server, httpx.Client() as client:
        told = [answered(client)]
        server.outage(after=0.0, seconds=0.3, refuse=refuse)
        time.sleep(0.1)
        told.append(answered(client))
        time.sleep(0.4)
        told.append(answered(client))
        assert told == [True, False, True]
        assert server.outcomes == {"ok": 2} | ({} if refuse else {"outage": 1})


def test_models_are_listed_and_other_paths_refused() -> None:
    with ScriptedServer(models=("a", "b")) as server:
        assert [each["id"] for each in httpx.get(f"{server.url}/models").json()["data"]] == ["a", "b"]
        assert httpx.get(f"{server.url}/nothing").status_code == 404


def test_sixty_four_hanging_requests_do_not_keep_the_server_from_ending() -> None:
    async def scenario(url: str) -> None:
        async with httpx.AsyncClient(timeout=httpx.Timeout(0.2, connect=10)) as client:
            requests = [client.post(f"{url}/chat/completions", json=REQUEST) for _ in range(64)]
            told = await asyncio.gather(*requests, return_exceptions=True)
        assert {type(each) for each in told} == {httpx.ReadTimeout}

    began = time.monotonic()
    with ScriptedServer(faults=Faults(hang=1.0)) as server:
        asyncio.run(scenario(server.url))
    assert time.monotonic() - began < 5
    assert server.outcomes == {"hang": 64} and json.dumps(server.requests[0]) == json.dumps(REQUEST)
