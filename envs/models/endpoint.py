"""A language model behind an OpenAI-compatible server, asked patiently: retries, deadlines, a breaker.

``Endpoint`` is what a run shares: connections, the limit on requests in flight, the breaker and the totals.
``endpoint.dialogue(seconds)`` is one dialogue's view of it, and the ``ModelClient`` that its client is given.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from envs.hashing import derived_seed
from envs.models.breaker import Breaker, Permit
from envs.models.endpoint_spec import EndpointSpec
from envs.models.model_client import Answer, Ask, ModelError

CONNECT_TIMEOUT = 5.0  # seconds; a host that drops packets would otherwise hold a probe for the whole request_timeout
SHOWN = 200  # characters of a server's own words
RETRIED = (408, 409, 429)  # and every 5xx
REMEDIES = {
    400: "the request does not suit the server; is the context too short, or are JSON schemas unsupported?",
    401: "the key was not accepted; set the variable that key_env names to a valid key",
    403: "the key may not use this model; give another key or another model",
    404: "there is no such model or address; compare model and base_url with what the server's /models lists",
    422: "the request does not suit the server; does it support JSON schemas and seeds?",
}
if logging.getLogger("httpx2").level == logging.NOTSET:
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request


@dataclass
class Usage:
    """What was asked and what it took. ``retries`` are requests beyond the first of each ask; ``cost`` is in the
    prices' currency, None when that of any answer is not known."""

    asks: int = 0
    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0

    def add(self, answer: Answer) -> None:
        """Count an answer's tokens and cost."""
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost = None if self.cost is None or answer.cost is None else self.cost + answer.cost


@dataclass(frozen=True)
class _Failure:
    """Why an attempt gave no answer. ``wait``: seconds that the server asks for; ``down``: it counts for the breaker;
    ``final``: another attempt would end the same way."""

    reason: str
    wait: float | None = None
    down: bool = False
    final: bool = False


NO_COMPLETION = _Failure("the server's answer is not that of a chat completion", down=True)


@dataclass
class _PerLoop:
    """What belongs to one event loop: connections and locks can't be used from another."""

    client: openai.AsyncOpenAI
    slots: asyncio.Semaphore


@dataclass
class _Progress:
    """One ask under way."""

    sent: int = 0  # requests, probes of an open breaker included
    charged: int = 0  # attempts out of max_attempts
    last: _Failure = field(default_factory=lambda: _Failure("no request could be sent"))


class Endpoint:
    """One server and model, shared by all dialogues of a run. Used from one thread, by one event loop after another.

    ``failures`` counts failed attempts by cause, ``usage`` what was spent. Raises InputError when the key is missing.
    """

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec
        self.breaker = Breaker(f"{spec.base_url} ({spec.model})", spec.breaker)
        self.usage = Usage()
        self.failures: Counter[str] = Counter()
        self._key = spec.key()
        self._random = random.Random()  # only moments depend on it, never content
        self._loops: dict[asyncio.AbstractEventLoop, _PerLoop] = {}

    def dialogue(self, deadline_seconds: float) -> DialogueModel:
        """A view for one dialogue, whose deadline runs from its first ask."""
        return DialogueModel(self, deadline_seconds)

    async def close(self) -> None:
        """Close the running loop's connections. The endpoint can be used again."""
        per_loop = self._loops.pop(asyncio.get_running_loop(), None)
        if per_loop:
            await per_loop.client.close()

    async def _answer(self, ask: Ask, usage: Usage, deadline: float, progress: _Progress) -> Answer:
        """Send ``ask`` until it is answered; ``deadline`` in monotonic seconds. Raises ModelError."""
        while True:
            outcome = await self._attempt(ask, usage, progress)
            if isinstance(outcome, Answer):
                return outcome
            progress.last = outcome
            self.failures[outcome.reason.split(":")[0]] += 1
            if outcome.final:
                raise ModelError(self._told(outcome.reason))
            if progress.charged >= self.spec.max_attempts:
                attempts = f"no answer in {self.spec.max_attempts} attempts"
                raise ModelError(self._told(f"{attempts}; the last: {outcome.reason}"))
            wait = self._pause(progress.charged, outcome.wait)
            if time.monotonic() + wait >= deadline:
                raise ModelError(self._told(f"no time for another attempt; the last: {outcome.reason}"))
            await asyncio.sleep(wait)

    async def _attempt(self, ask: Ask, usage: Usage, progress: _Progress) -> Answer | _Failure:
        here = self._here()
        async with here.slots:
            permit = await self.breaker.admit()
            settle = self.breaker.abandoned  # what a cancelled request tells
            try:
                progress.sent += 1
                # A probe serves all who wait, so that it is not charged to the one that happened to send it.
                progress.charged += not permit.probe
                for spent in (usage, self.usage):
                    spent.requests += 1
                    spent.retries += progress.sent > 1
                outcome = await self._request(here.client, ask)
                settle = self._verdict(outcome)
            finally:
                settle(permit)
        if isinstance(outcome, Answer):
            for spent in (usage, self.usage):
                spent.add(outcome)
            if not outcome.text.strip():
                return _Failure(f"empty answer (finish reason {outcome.finish_reason})")
        return outcome

    def _verdict(self, outcome: Answer | _Failure) -> Callable[[Permit], None]:
        if isinstance(outcome, _Failure) and outcome.down:
            return lambda permit: self.breaker.failed(permit, outcome.reason)
        return self.breaker.succeeded

    async def _request(self, client: openai.AsyncOpenAI, ask: Ask) -> Answer | _Failure:
        """One request. The SDK's timeouts are for each read, so that a server that drips bytes needs one over all."""
        try:
            async with asyncio.timeout(self.spec.request_timeout):
                # ``chat.completions.create`` sends the same after a walk over every message: a quarter of the CPU time.
                completion = await client.post(
                    "/chat/completions", cast_to=ChatCompletion, body=_body(self.spec.model, ask)
                )
        except (TimeoutError, openai.APITimeoutError):
            return _Failure(f"timeout after {self.spec.request_timeout:g} s", down=True)
        except openai.APIConnectionError:
            return _Failure("connection error", down=True)
        except openai.APIStatusError as error:
            return self._refused(error)
        except (openai.OpenAIError, json.JSONDecodeError, UnicodeDecodeError):
            return NO_COMPLETION
        return self._read(completion)

    def _refused(self, error: openai.APIStatusError) -> _Failure:
        status, wait = error.status_code, _retry_after(error.response.headers)
        if status == 429 and error.code == "insufficient_quota":
            return _Failure("status 429: the account has no credit left; top it up or give another key", final=True)
        if status in RETRIED or status >= 500:
            return _Failure(f"status {status}", wait=wait, down=status not in (409, 429))
        reason = f"status {status}: {REMEDIES.get(status, 'the server refused the request')}"
        if status not in (401, 403):  # those quote the key, or parts of it
            reason += f" (the server says: {self._redacted(error.message)})"
        return _Failure(reason, final=True)

    def _read(self, completion: Any) -> Answer | _Failure:
        """The answer in a response; the SDK checks nothing of its shape."""
        choices = completion.choices if isinstance(completion, ChatCompletion) else None
        if not choices or not isinstance(choices, list) or not getattr(choices[0], "message", None):
            return NO_COMPLETION
        counts = _token_counts(completion.usage)
        prompt, completed = counts or (0, 0)
        text = choices[0].message.content or ""
        try:
            text.encode()
            return Answer(
                text=text,
                model=self.spec.model,
                finish_reason=choices[0].finish_reason or "stop",
                prompt_tokens=prompt,
                completion_tokens=completed,
                cost=self.spec.cost(prompt, completed) if counts else None,
            )
        except (ValidationError, AttributeError, UnicodeEncodeError):  # such as half of a surrogate pair
            return _Failure("the answer is no text")

    def _pause(self, attempts: int, asked: float | None) -> float:
        """Seconds to wait: what the server asks for, and a draw from up to a bound that doubles with each attempt, so
        that those who failed together come back apart."""
        bound = min(self.spec.backoff_seconds * 2 ** max(attempts - 1, 0), self.spec.max_backoff_seconds)
        return (asked or 0.0) + self._random.uniform(0, bound)

    def _here(self) -> _PerLoop:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops = {kept: state for kept, state in self._loops.items() if not kept.is_closed()}
            timeout = openai.Timeout(self.spec.request_timeout, connect=min(CONNECT_TIMEOUT, self.spec.request_timeout))
            client = openai.AsyncOpenAI(
                # Without a key of ours the SDK would send OPENAI_API_KEY, whoever the server is.
                api_key=self._key or "none",
                base_url=self.spec.base_url,
                timeout=timeout,
                max_retries=0,
                # The SDK's own client closes itself when it is collected, on whatever loop runs then.
                http_client=openai.DefaultAsyncHttpxClient(timeout=timeout),
            )
            self._loops[loop] = _PerLoop(client, asyncio.Semaphore(self.spec.concurrency))
        return self._loops[loop]

    def _told(self, reason: str) -> str:
        return f"{self.spec.base_url} ({self.spec.model}): {reason}"

    def _redacted(self, text: str) -> str:
        return (text.replace(self._key, "***") if self._key else text)[:SHOWN]


class DialogueModel:
    """One dialogue's view of an endpoint: its own deadline and its own usage."""

    def __init__(self, endpoint: Endpoint, deadline_seconds: float) -> None:
        self.usage = Usage()
        self._endpoint, self._seconds = endpoint, deadline_seconds
        self._deadline: float | None = None  # monotonic seconds; set by the first ask: a plan may wait for its turn

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._endpoint.spec.model

    async def ask(self, ask: Ask) -> Answer:
        """Answer one request. Raises ModelError when there is no answer within the deadline, or can be none."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
        self.usage.asks += 1
        self._endpoint.usage.asks += 1
        progress = _Progress()
        left = self._deadline - time.monotonic()
        try:
            if left > 0:  # a request that starts late is not sent at all
                async with asyncio.timeout(left):
                    return await self._endpoint._answer(ask, self.usage, self._deadline, progress)
        except TimeoutError:
            pass
        reason = f"no answer within the dialogue's deadline; the last attempt: {progress.last.reason}"
        raise ModelError(self._endpoint._told(reason))


def _body(model: str, ask: Ask) -> dict[str, Any]:
    """The request."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [message.model_dump() for message in ask.messages],
        # Another try is another draw, where anything is drawn.
        "seed": derived_seed(ask.seed, ask.attempt) if ask.attempt else ask.seed,
        "temperature": ask.temperature,
        "max_tokens": ask.max_tokens,
    }
    if ask.answer_schema is not None:
        schema = {"name": ask.schema_name, "schema": ask.answer_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _token_counts(usage: Any) -> tuple[int, int] | None:
    """Tokens of the prompt and of the answer; None when the server does not tell."""
    match getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None):
        case int(prompt), int(completed):
            return prompt, completed
    return None


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait, from ``retry-after-ms`` or ``Retry-After`` (seconds or an HTTP date)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
