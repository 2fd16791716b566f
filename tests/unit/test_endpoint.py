"""An endpoint: what it sends, when it tries again, its deadlines and counts, and that the key stays hidden."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from envs.errors import InputError
from envs.hashing import derived_seed
from envs.models.endpoint import DialogueModel, Endpoint, Usage, _retry_after
from envs.models.endpoint_spec import BreakerSettings, EndpointSpec
from envs.models.model_client import Answer, Ask, ChatMessage, ModelError
from tests.scripted_server import Faults, Latency, ScriptedServer, completion

ASK = Ask(messages=(ChatMessage(role="system", content="You are tired."), ChatMessage(role="user", content="Hi")))
SCHEMA = {"type": "object", "properties": {"change": {"type": "integer", "minimum": -10, "maximum": 10}}}
KEY = "sk-not-a-real-key-0123456789"
REQUEST = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}


def ok(text: str = "Well.") -> tuple[int, Any, dict[str, str]]:
    return 200, completion(REQUEST, text), {}


def status(number: int, message: str = "no", **headers: str) -> tuple[int, Any, dict[str, str]]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return number, {"error": {"message": message, "code": None}}, names


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


def spec(server: ScriptedServer, **changes: Any) -> EndpointSpec:
    quick = {"request_timeout": 5.0, "backoff_seconds": 0.01, "max_backoff_seconds": 0.05}
    return EndpointSpec.model_validate({"base_url": server.url, "model": "scripted"} | quick | changes)


def asked(endpoint: Endpoint, ask: Ask = ASK, deadline: float = 10.0) -> Answer:
    async def scenario() -> Answer:
        try:
            return await endpoint.dialogue(deadline).ask(ask)
        finally:
            await endpoint.close()

    return asyncio.run(scenario())


def refused(endpoint: Endpoint, deadline: float = 10.0) -> str:
    with pytest.raises(ModelError) as raised:
        asked(endpoint, deadline=deadline)
    return str(raised.value)


def test_a_request_holds_all_that_was_asked_and_the_answer_all_that_came_back(server: ScriptedServer) -> None:
    server.next_replies(ok("I am tired."))
    ask = ASK.model_copy(update={"answer_schema": SCHEMA, "schema_name": "feeling", "seed": 5, "max_tokens": 40})
    answer = asked(Endpoint(spec(server, prompt_price=2, completion_price=10)), ask)
    assert server.requests == [
        {
            "model": "scripted",
            "messages": [{"role": "system", "content": "You are tired."}, {"role": "user", "content": "Hi"}],
            "seed": 5,
            "temperature": 0.0,
            "max_tokens": 40,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "feeling", "schema": SCHEMA, "strict": True},
            },
        }
    ]
    told = {"text": "I am tired.", "model": "scripted", "finish_reason": "stop"}
    assert answer.model_dump() == told | {
        "prompt_tokens": 1, "completion_tokens": 3, "cost": pytest.approx(32e-6), "cached": False
    }  # fmt: skip


def test_a_re_ask_is_sent_with_another_seed(server: ScriptedServer) -> None:
    endpoint = Endpoint(spec(server))
    for attempt in range(3):
        asked(endpoint, ASK.model_copy(update={"seed": 5, "attempt": attempt}))
    assert [request["seed"] for request in server.requests] == [5, derived_seed(5, 1), derived_seed(5, 2)]
    assert "response_format" not in server.requests[0]


@pytest.mark.parametrize("number", [408, 409, 429, 500, 502, 503])
def test_a_passing_failure_is_tried_again(server: ScriptedServer, number: int) -> None:
    server.next_replies(status(number), status(number), ok())
    endpoint = Endpoint(spec(server))
    assert asked(endpoint).text == "Well."
    assert (len(server.requests), endpoint.failures) == (3, {f"status {number}": 2})
    assert server.requests[0] == server.requests[1] == server.requests[2]


@pytest.mark.parametrize(
    "reply",
    [
        ok(""),
        ok(" \n"),
        (200, completion(REQUEST, "") | {"choices": []}, {}),
        (200, completion(REQUEST, "") | {"choices": None}, {}),
        (200, "{ half", {}),
        (200, "<html>a proxy speaks</html>", {"Content-Type": "text/html"}),
        (200, "[]", {}),
        (200, completion(REQUEST, "") | {"choices": [{"message": {"content": ["a", "list"]}}]}, {}),
        (200, completion(REQUEST, "\ud800 half a pair"), {}),
    ],
    ids=["empty", "blank", "no choice", "null choices", "half a body", "html", "a list", "parts", "half a pair"],
)
def test_an_answer_that_says_nothing_is_asked_for_again(server: ScriptedServer, reply: tuple[int, Any, Any]) -> None:
    server.next_replies(reply, ok())
    endpoint = Endpoint(spec(server))
    assert asked(endpoint).text == "Well."
    assert len(server.requests) == 2 and sum(endpoint.failures.values()) == 1


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (400, "is the context too short"),
        (401, "set the variable that key_env names"),
        (403, "give another key or another model"),
        (404, "compare model and base_url"),
        (422, "does it support JSON schemas"),
        (418, "the server refused the request"),
    ],
)
def test_a_refusal_is_final_and_names_the_remedy(server: ScriptedServer, number: int, remedy: str) -> None:
    server.next_replies(status(number, "so be it"), ok())
    endpoint = Endpoint(spec(server))
    told = refused(endpoint)
    assert f"{server.url} (scripted): status {number}: " in told and remedy in told
    assert ("so be it" in told) == (number not in (401, 403))
    assert len(server.requests) == 1 and endpoint.failures == {f"status {number}": 1}


def test_an_account_without_credit_is_not_asked_again(server: ScriptedServer) -> None:
    server.next_replies((429, {"error": {"message": "no", "code": "insufficient_quota"}}, {}), ok())
    assert "top it up or give another key" in refused(Endpoint(spec(server)))
    assert len(server.requests) == 1


def test_attempts_are_counted_and_the_last_failure_is_named(server: ScriptedServer) -> None:
    server.next_replies(*[status(500)] * 9)
    told = refused(Endpoint(spec(server, max_attempts=3)))
    assert told.endswith("no answer in 3 attempts; the last: status 500")
    assert len(server.requests) == 3


def test_a_hang_is_cut_off_and_tried_again() -> None:
    with ScriptedServer(faults=Faults(hang=1.0)) as hanging:
        endpoint = Endpoint(spec(hanging, request_timeout=0.1, max_attempts=3))
        began = time.monotonic()
        assert refused(endpoint).endswith("no answer in 3 attempts; the last: timeout after 0.1 s")
        assert 0.3 <= time.monotonic() - began < 4
        assert hanging.outcomes == {"hang": 3}


def test_a_server_that_is_not_there_is_a_connection_error(server: ScriptedServer) -> None:
    endpoint = Endpoint(spec(server, base_url="http://127.0.0.1:9/v1", max_attempts=2))
    assert refused(endpoint).endswith("no answer in 2 attempts; the last: connection error")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": formatdate(time.time() - 60, usegmt=True)}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_a_server_asks_for_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert _retry_after(headers) == seconds


def test_a_wait_until_a_date_is_the_time_until_then() -> None:
    assert 28 < (_retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) or 0) <= 30


@pytest.mark.parametrize(("number", "wait"), [(429, 0.3), (503, 0.3)])
def test_the_wait_is_kept(server: ScriptedServer, number: int, wait: float) -> None:
    server.next_replies(status(number, Retry_After=f"{wait}"), ok())
    began = time.monotonic()
    asked(Endpoint(spec(server)))
    assert wait <= time.monotonic() - began < wait + 4


@given(st.integers(0, 40), st.none() | st.floats(0, 100))
def test_a_pause_is_drawn_below_a_bound_that_doubles_up_to_its_limit(attempts: int, asked_for: float | None) -> None:
    endpoint = Endpoint(EndpointSpec(base_url="http://host/v1", model="m", backoff_seconds=0.5, max_backoff_seconds=20))
    bound = [0.5, 0.5, 1, 2, 4, 8, 16][attempts] if attempts < 7 else 20
    assert 0 <= endpoint._pause(attempts, asked_for) - (asked_for or 0) <= bound + 1e-9


def test_pauses_are_spread_over_their_range() -> None:
    endpoint = Endpoint(EndpointSpec(base_url="http://host/v1", model="m", backoff_seconds=1, max_backoff_seconds=1))
    pauses = [endpoint._pause(1, None) for _ in range(1000)]
    assert min(pauses) < 0.05 and max(pauses) > 0.95


def test_a_wait_beyond_the_deadline_ends_the_ask_at_once(server: ScriptedServer) -> None:
    server.next_replies(status(429, Retry_After="60"), ok())
    began = time.monotonic()
    assert refused(Endpoint(spec(server)), deadline=10.0).endswith("no time for another attempt; the last: status 429")
    assert time.monotonic() - began < 5


def test_a_deadline_cuts_a_request_and_nothing_is_sent_after_it() -> None:
    with ScriptedServer(faults=Faults(hang=1.0)) as hanging:
        endpoint = Endpoint(spec(hanging))

        async def scenario() -> tuple[DialogueModel, float]:
            model, began = endpoint.dialogue(0.2), time.monotonic()
            for _ in range(3):
                with pytest.raises(ModelError, match="no answer within the dialogue's deadline"):
                    await model.ask(ASK)
            return model, time.monotonic() - began

        model, seconds = asyncio.run(scenario())
        assert 0.2 <= seconds < 4
        assert (model.usage.asks, model.usage.requests, len(hanging.requests)) == (3, 1, 1)


def test_a_deadline_runs_from_the_first_ask_and_covers_all(server: ScriptedServer) -> None:
    async def scenario() -> None:
        model = Endpoint(spec(server)).dialogue(0.3)
        await asyncio.sleep(0.35)
        await model.ask(ASK)
        await asyncio.sleep(0.35)
        with pytest.raises(ModelError, match="deadline; the last attempt: no request could be sent"):
            await model.ask(ASK)

    asyncio.run(scenario())


def test_no_more_requests_than_allowed_are_in_flight() -> None:
    with ScriptedServer(latency=Latency(mean=0.1, spread=0.01)) as slow:
        endpoint = Endpoint(spec(slow, concurrency=4))

        async def scenario() -> float:
            began = time.monotonic()
            await asyncio.gather(*(endpoint.dialogue(10).ask(ASK) for _ in range(12)))
            return time.monotonic() - began

        assert asyncio.run(scenario()) >= 0.28


def test_each_dialogue_counts_its_own_and_the_endpoint_all(server: ScriptedServer) -> None:
    endpoint = Endpoint(spec(server, prompt_price=1e6, completion_price=2e6))

    async def scenario() -> list[Usage]:
        first, second = endpoint.dialogue(10), endpoint.dialogue(10)
        server.next_replies(status(500), ok("one two"))
        await first.ask(ASK)
        server.next_replies(ok("three"), ok("four"))
        await second.ask(ASK)
        await second.ask(ASK)
        return [first.usage, second.usage]

    assert asyncio.run(scenario()) == [Usage(1, 2, 1, 1, 2, 5.0), Usage(2, 2, 0, 2, 2, 6.0)]
    assert endpoint.usage == Usage(3, 4, 1, 3, 4, 11.0)


def test_without_a_price_or_a_count_of_tokens_the_cost_is_not_known(server: ScriptedServer) -> None:
    assert asked(Endpoint(spec(server))).cost is None
    server.next_replies((200, completion(REQUEST, "Well.") | {"usage": None}, {}), ok())
    endpoint = Endpoint(spec(server, prompt_price=1, completion_price=1))
    assert asked(endpoint).cost is None
    assert asked(endpoint).cost == pytest.approx(2e-6)
    assert endpoint.usage.cost is None


def test_an_endpoint_serves_one_event_loop_after_another(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Endpoint(spec(server, concurrency=2))

    async def scenario() -> None:
        await asyncio.gather(*(endpoint.dialogue(10).ask(ASK) for _ in range(6)))

    for _ in range(3):
        asyncio.run(scenario())
    assert len(server.requests) == 18 and endpoint.failures == {}
    assert len(endpoint._loops) == 1, "what belongs to closed loops is let go"
    assert caplog.records == []


def test_an_outage_costs_few_requests_and_no_ask(server: ScriptedServer) -> None:
    quick = BreakerSettings(failures=5, open_seconds=0.1, max_open_seconds=0.2)
    endpoint = Endpoint(spec(server, concurrency=16, max_attempts=3, breaker=quick))

    async def scenario() -> list[Answer]:
        await endpoint.dialogue(10).ask(ASK)
        server.outage(after=0.0, seconds=1.0, refuse=False)
        await asyncio.sleep(0.1)
        return await asyncio.gather(*(endpoint.dialogue(10).ask(ASK) for _ in range(64)))

    assert len(asyncio.run(scenario())) == 64
    assert [each.closed is not None for each in endpoint.breaker.openings] == [True]
    # 16 in flight when it opened, a probe after 0.1 s and then every 0.2 s.
    assert 6 <= server.outcomes["outage"] <= 16 + 6
    assert endpoint.usage.requests == server.outcomes["outage"] + 65


def test_hangs_open_the_breaker_and_rate_limits_do_not() -> None:
    for faults, opens in ((Faults(hang=1.0), 1), (Faults(rate_limit=1.0, retry_after=0.0), 0)):
        with ScriptedServer(faults=faults) as server:
            tight = BreakerSettings(failures=3, open_seconds=30, max_open_seconds=30)
            endpoint = Endpoint(spec(server, request_timeout=0.2, max_attempts=6, breaker=tight))
            refused(endpoint, deadline=1.5)
            assert len(endpoint.breaker.openings) == opens
            assert len(server.requests) == (3 if opens else 6)


def test_a_probe_that_a_deadline_cuts_lets_another_dialogue_probe() -> None:
    with ScriptedServer() as server:
        tight = BreakerSettings(failures=1, open_seconds=0.05, max_open_seconds=0.05)
        endpoint = Endpoint(spec(server, concurrency=1, breaker=tight))

        async def scenario() -> str:
            await endpoint.dialogue(10).ask(ASK)  # the first connection takes its time
            server.next_replies(status(500))
            server.latency = Latency(mean=4.0, spread=0.01)
            with pytest.raises(ModelError, match="within the dialogue's deadline"):
                await endpoint.dialogue(1.0).ask(ASK)
            assert endpoint.breaker.is_open and endpoint.breaker.openings[0].probes == 1
            server.latency = Latency()
            return (await endpoint.dialogue(5).ask(ASK)).text

        assert asyncio.run(scenario()).startswith("Answer ")
        assert not endpoint.breaker.is_open


def test_the_key_is_sent_and_shown_nowhere(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ATTUNE_TEST_KEY", f" {KEY}\n")
    keyed = spec(server, key_env="ATTUNE_TEST_KEY")
    endpoint = Endpoint(keyed)
    with caplog.at_level(logging.INFO):
        asked(endpoint)
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        server.next_replies(status(401, f"wrong key {KEY}"), status(400, f"wrong key {KEY}"))
        told = [refused(endpoint), refused(endpoint)]
    assert "wrong key ***" in told[1]
    shown = [repr(keyed), keyed.model_dump_json(), str(vars(endpoint)["spec"]), repr(endpoint), *told, caplog.text]
    assert [text for text in shown if KEY in text] == []
    assert caplog.records == [], "the HTTP client's line for each request is left out"


def test_without_a_key_no_other_programs_key_is_sent(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    asked(Endpoint(spec(server)))
    assert KEY not in str(server.headers)


def test_a_missing_or_broken_key_is_named_by_its_variable(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed = spec(server, key_env="ATTUNE_TEST_KEY")
    monkeypatch.delenv("ATTUNE_TEST_KEY", raising=False)
    with pytest.raises(InputError, match="variable ATTUNE_TEST_KEY is not set; set it to the key of"):
        Endpoint(keyed)
    for broken in ("sk-é", "sk-1\nsk-2", "sk 1"):
        monkeypatch.setenv("ATTUNE_TEST_KEY", broken)
        with pytest.raises(InputError, match="ATTUNE_TEST_KEY holds characters that no key has") as raised:
            keyed.key()
        assert broken not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base_url": "127.0.0.1:8000"}, "must begin with http:// or https://"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "must hold no user, password or query"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "must hold no user, password or query"),
        ({"max_backoff_seconds": 0.001}, "max_backoff_seconds is less than backoff_seconds"),
        ({"prompt_price": 1}, "must both be given"),
        ({"breaker": {"open_seconds": 30}}, "max_open_seconds is less than open_seconds"),
        ({"concurency": 4}, "Extra inputs are not permitted"),
    ],
)
def test_a_spec_says_what_is_wrong_with_it(server: ScriptedServer, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        spec(server, **changes)
