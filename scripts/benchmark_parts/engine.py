"""The engine of the benchmark: our vLLM server with replies of fixed length, and its prefix cache watched.

Every reply has as many tokens as are allowed, so that all variants sample the same number. vLLM's development mode is
on, for emptying the prefix cache between variants and for reloading weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from envs.errors import RunError
from scripts.benchmark_parts.prefix import IdealPrefixes
from trainers.policy_server import Sampled
from trainers.vllm_server import BASE_NAME, VllmServer, VllmSettings

FIXED_LENGTH = {"ignore_eos": True, "stop_token_ids": []}
DEVELOPMENT_MODE = "VLLM_SERVER_DEV_MODE"


class BenchmarkServer(VllmServer):
    """A server whose replies don't end early, and that counts what its prefix cache could have held."""

    ideal = IdealPrefixes()

    async def generate(
        self, prompt_ids: Sequence[int], *, adapter: str | None, max_tokens: int, **rest: Any
    ) -> Sampled:
        """See PolicyServer. Raises RunError when the reply is shorter than ``max_tokens``."""
        self.ideal.ask(adapter or BASE_NAME, prompt_ids)
        sampled = await super().generate(prompt_ids, adapter=adapter, max_tokens=max_tokens, **rest)
        check_length(sampled.ids, max_tokens)
        self.ideal.learn(adapter or BASE_NAME, [*prompt_ids, *sampled.ids[:-1]])
        return sampled

    def _async_client(self) -> Any:
        return _FixedLength(super()._async_client())

    @property
    def url(self) -> str:
        """Its address."""
        return self.urls[0]


@dataclass(frozen=True)
class _FixedLength:
    """An HTTP client that asks for replies that don't end early."""

    client: httpx.AsyncClient

    async def post(self, url: str, *, json: dict[str, Any], **rest: Any) -> httpx.Response:
        return await self.client.post(url, json=json | FIXED_LENGTH, **rest)


def start(settings: VllmSettings) -> BenchmarkServer:
    """Start a server in development mode, and learn the size of its blocks. Raises what VllmServer.start raises."""
    os.environ[DEVELOPMENT_MODE] = "1"
    try:
        server = BenchmarkServer.start(settings)
    finally:
        del os.environ[DEVELOPMENT_MODE]
    server.ideal = IdealPrefixes(block_size(metrics(server.url)))
    return server


def check_length(ids: Sequence[int], tokens: int) -> None:
    """Raise RunError unless a reply has exactly ``tokens`` tokens: otherwise variants did different work."""
    if len(ids) != tokens:
        raise RunError(f"the engine sampled {len(ids)} tokens where the benchmark asked for exactly {tokens}")


def forget_prefixes(server: BenchmarkServer) -> None:
    """Empty the prefix cache, so that the next variant starts as the last one did."""
    httpx.post(f"{server.url}/reset_prefix_cache", timeout=60).raise_for_status()
    server.ideal = IdealPrefixes(server.ideal.block)


def metrics(url: str) -> str:
    """The server's counters in Prometheus' text format."""
    return httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text


def counter(text: str, name: str) -> int:
    """The sum of a counter over its labels. Raises RunError when it isn't there."""
    found = re.findall(rf"^{re.escape(name)}(?:_total)?(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", text, re.MULTILINE)
    if not found:
        raise RunError(f"the server's metrics have no {name}; this vLLM counts otherwise than the pinned one")
    return round(sum(map(float, found)))


def prefix_counters(url: str) -> tuple[int, int]:
    """Tokens found in the prefix cache, and tokens looked up there, since the server started."""
    text = metrics(url)
    return counter(text, "vllm:prefix_cache_hits"), counter(text, "vllm:prefix_cache_queries")


def block_size(text: str) -> int:
    """Tokens in a block of the prefix cache, as the metrics say. Raises RunError when they don't."""
    found = re.search(r'^vllm:cache_config_info\{.*?\bblock_size="(\d+)"', text, re.MULTILINE)
    if not found:
        raise RunError("the server's metrics don't say how large a block is")
    return int(found.group(1))
