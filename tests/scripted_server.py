"""An OpenAI-compatible server on loopback whose answers are a function of the request, and which fails on demand.

    with ScriptedServer(faults=Faults.evenly(0.2)) as server:
        ...  # base_url is server.url

Without a script it answers a JSON schema with JSON that fits it, and anything else with a short text; both depend on
the model, the messages and the schema only, so that a faulty run can be compared with a fault-free one. What goes wrong
is drawn for each request from its content and how often it came before, so that it does not depend on who came first.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from email.utils import formatdate
from statistics import NormalDist
from typing import Any, Self

from envs.hashing import content_hash
from tests.schema_filling import fill, spoil_range

Request = dict[str, Any]
Script = Callable[[Request], str]
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Faults:
    """The share of requests that meets each fault. The last two spoil only answers to a JSON schema."""

    rate_limit: float = 0.0  # 429 with Retry-After
    server_error: float = 0.0  # 500
    hang: float = 0.0  # no answer, ever
    empty: float = 0.0  # 200 with no text
    malformed: float = 0.0  # 200 with half of the JSON
    out_of_range: float = 0.0  # 200 with a number outside the schema's bounds
    seed: int = 0
    retry_after: float | None = None  # seconds; None: up to 0.45 s or 1 s, told in different ways

    @classmethod
    def evenly(cls, share: float, seed: int = 0) -> Faults:
        """All six kinds, ``share`` together."""
        return cls(*[share / 6] * 6, seed=seed)

    def drawn(self, draw: float) -> str | None:
        """The fault at ``draw`` in [0, 1), or None."""
        for kind in [each.name for each in fields(self)][:6]:
            draw -= getattr(self, kind)
            if draw < 0:
                return kind
        return None


@dataclass(frozen=True)
class Latency:
    """Log-normal time to an answer, in seconds. At ``spread`` 0.3 the 99th percentile is 1.9 times the mean."""

    mean: float = 0.0
    spread: float = 0.3

    def drawn(self, draw: float) -> float:
        """The quantile at ``draw`` in (0, 1)."""
        return (
            math.exp(NormalDist(math.log(self.mean) - self.spread**2 / 2, self.spread).inv_cdf(draw))
            if self.mean
            else 0.0
        )


@dataclass(frozen=True)
class _Reply:
    status: int
    body: Any
    headers: tuple[tuple[str, str], ...] = ()


class ScriptedServer:
    """Runs in a thread of its own from ``with`` on. Its ports and counters outlive outages.

    ``outcomes`` counts requests by what became of them ("ok", a fault's name, "outage"). ``requests`` keeps their
    bodies and ``headers`` their headers, in order of arrival.
    """

    def __init__(
        self,
        script: Script | None = None,
        faults: Faults | None = None,
        latency: Latency | None = None,
        models: tuple[str, ...] = ("scripted",),
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.headers: list[dict[str, str]] = []
        self.faults, self.latency, self.models = faults or Faults(), latency or Latency(), models
        self._script = script or schema_script
        self._seen: Counter[str] = Counter()
        self._replies: list[_Reply] = []
        self._down = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The base address, as a client needs it."""
        return f"http://{HOST}:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def next_replies(self, *replies: tuple[int, Any, dict[str, str]]) -> None:
        """Answer the next requests with exactly these (status, body, headers), before anything else."""
        self._replies += [_Reply(status, body, tuple(headers.items())) for status, body, headers in replies]

    def outage(self, after: float, seconds: float, refuse: bool = True) -> None:
        """Be down from ``after`` seconds on: refuse connections and drop those that are open, or answer 503."""
        asyncio.run_coroutine_threadsafe(self._outage(after, seconds, refuse), self._loop)

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _outage(self, after: float, seconds: float, refuse: bool) -> None:
        self._tasks.add(task := asyncio.current_task())  # type: ignore[arg-type]
        await asyncio.sleep(after)
        if refuse:
            self._drop()
        self._down = not refuse
        await asyncio.sleep(seconds)
        self._down = False
        if refuse:
            await self._listen()
        self._tasks.discard(task)  # type: ignore[arg-type]

    def _drop(self) -> None:
        if self._server:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _leave(self) -> None:
        self._drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._tasks.add(task := asyncio.current_task())  # type: ignore[arg-type]
        try:
            while (request := await _read(reader)) is not None:
                path, headers, body = request
                reply = await self._reply(path, headers, body)
                writer.write(_encoded(reply))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client gave up, an outage began, or the server ends
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)  # type: ignore[arg-type]
            writer.close()

    async def _reply(self, path: str, headers: dict[str, str], body: bytes) -> _Reply:
        if path.endswith("/models"):
            return _Reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        if not path.endswith("/chat/completions"):
            return _refusal(404, f"there is no {path}")
        request = json.loads(body)
        self.requests.append(request)
        self.headers.append(headers)
        if self._down:
            self.outcomes["outage"] += 1
            return _refusal(503, "the server is being restarted")
        if self._replies:
            self.outcomes["given"] += 1
            return self._replies.pop(0)
        return await self._answer(request)

    async def _answer(self, request: Request) -> _Reply:
        content = content_hash(request)
        self._seen[content] += 1
        draws = random.Random(f"{self.faults.seed} {content} {self._seen[content]}")
        fault = self.faults.drawn(draws.random())
        quantile, moment = min(max(draws.random(), 1e-9), 1 - 1e-9), draws.random()
        try:
            text = self._script(request)
        except ValueError as error:
            self.outcomes["refused"] += 1
            return _refusal(400, str(error))
        if fault in ("malformed", "out_of_range"):
            spoiled = spoiled_text(request, text, fault)
            fault, text = (None, text) if spoiled is None else (fault, spoiled)
        self.outcomes[fault or "ok"] += 1
        if fault == "rate_limit":
            return self._rate_limit(moment)
        if fault == "server_error":
            return _refusal(500, "something broke")
        await asyncio.sleep(math.inf if fault == "hang" else self.latency.drawn(quantile))
        return _Reply(200, completion(request, "" if fault == "empty" else text))

    def _rate_limit(self, moment: float) -> _Reply:
        wait = self.faults.retry_after
        if wait is not None or moment < 0.45:
            told = ("Retry-After", f"{moment if wait is None else wait:.2f}")
        elif moment < 0.9:
            told = ("retry-after-ms", f"{1000 * (moment - 0.45):.0f}")
        else:
            told = ("Retry-After", formatdate(time.time() + 1, usegmt=True))
        return _Reply(429, _refusal(429, "too many requests").body, (told,))


def schema_script(request: Request) -> str:
    """The default script: JSON that fits the asked schema, or a short text."""
    about = {"model": request["model"], "messages": request["messages"]}
    wanted = (request.get("response_format") or {}).get("json_schema")
    if wanted is None:
        return f"Answer {content_hash(about)[:12]}."
    return json.dumps(fill(wanted["schema"], content_hash(about)), ensure_ascii=False)


def spoiled_text(request: Request, text: str, fault: str) -> str | None:
    """``text`` cut in half, or with a number out of its bounds; None where the request gives no hold for that."""
    wanted = (request.get("response_format") or {}).get("json_schema")
    if wanted is None:
        return None
    if fault == "malformed":
        return text[: len(text) // 2]
    spoiled = spoil_range(wanted["schema"], json.loads(text))
    return None if spoiled is None else json.dumps(spoiled)


def completion(request: Request, text: str) -> Request:
    """A chat completion; a token is a word, for simplicity."""
    prompt = sum(len(message["content"].split()) for message in request["messages"])
    tokens = {"prompt_tokens": prompt, "completion_tokens": len(text.split())}
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": tokens | {"total_tokens": sum(tokens.values())},
    }


def _refusal(status: int, message: str) -> _Reply:
    return _Reply(status, {"error": {"message": message, "type": "scripted", "code": None}})


async def _read(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes] | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return first.split(" ")[1], headers, body


def _encoded(reply: _Reply) -> bytes:
    body = reply.body.encode() if isinstance(reply.body, str) else json.dumps(reply.body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | dict(reply.headers)
    lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
