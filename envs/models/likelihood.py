"""How likely a text is after another, under a language model: the protocol, a server that tells it, and a record."""

from __future__ import annotations

import json
import math
from collections.abc import MutableMapping
from typing import Any, Protocol

import httpx

from envs.hashing import content_hash
from envs.models.endpoint_spec import EndpointSpec
from envs.models.model_client import ModelError


class Likelihood(Protocol):
    """Scores a continuation. It is called for many texts at once."""

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    async def logprob(self, prompt: str, continuation: str) -> float:
        """The log-probability (nats) of the whole continuation after the prompt. Raises ModelError."""
        ...


class CompletionsLikelihood:
    """An OpenAI-compatible ``/completions`` that echoes the prompt's log-probabilities, as vLLM's does.

    log p(continuation | prompt) is log p(prompt + continuation) less log p(prompt), which needs no agreement on where
    one text's tokens end. ``transport`` is for tests.
    """

    def __init__(self, spec: EndpointSpec, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._spec = spec
        key = spec.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._options: dict[str, Any] = {"headers": headers, "timeout": spec.request_timeout, "transport": transport}
        self._prompts: dict[str, float] = {}

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._spec.model

    async def logprob(self, prompt: str, continuation: str) -> float:
        """See Likelihood."""
        if prompt not in self._prompts:
            self._prompts[prompt] = await self._whole(prompt)
        return await self._whole(prompt + continuation) - self._prompts[prompt]

    async def _whole(self, text: str) -> float:
        """The log-probability (nats) of a text after its own first token, which has none."""
        body = {
            "model": self._spec.model,
            "prompt": text,
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        try:
            async with httpx.AsyncClient(**self._options) as client:
                response = await client.post(f"{self._spec.base_url}/completions", json=body)
            response.raise_for_status()
            answer = response.json()
            counted = answer["usage"]["prompt_tokens"]
            found = answer["choices"][0]["logprobs"]["token_logprobs"][1:counted]
            whole = math.fsum(found)
        except (httpx.HTTPError, json.JSONDecodeError, LookupError, TypeError) as error:
            raise ModelError(
                f"{self._spec.base_url} ({self.model}): no log-probabilities of the prompt: {error}"
            ) from error
        if len(found) != counted - 1 or not math.isfinite(whole):
            raise ModelError(f"{self._spec.base_url} ({self.model}): not every token has a log-probability")
        return whole


class KeptLikelihood:
    """Keeps what it is told in ``kept`` (key to nats), and asks ``inner`` for the rest; without it the record alone."""

    def __init__(self, model: str, kept: MutableMapping[str, float], inner: Likelihood | None = None) -> None:
        self.model, self.kept, self._inner = model, kept, inner

    async def logprob(self, prompt: str, continuation: str) -> float:
        """See Likelihood. Raises ModelError when the record has none and nobody can be asked."""
        key = content_hash([self.model, prompt, continuation])
        if key not in self.kept:
            if self._inner is None:
                raise ModelError(
                    f"the record holds no likelihood of {self.model} for {continuation[:40]!r} ({key[:12]})"
                )
            self.kept[key] = await self._inner.logprob(prompt, continuation)
        return self.kept[key]
