"""Connections come from a stack: one each for requests at the same time, the same one for requests in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from trainers.connections import ConnectionStack
from trainers.vllm_server import KEEPALIVE_SECONDS, VllmSettings


class CountingServer:
    """Answers each request after a moment, and counts the connections on which they came."""

    def __init__(self) -> None:
        self.connections = 0
        self.hang_up_after_answer = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(0.02)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
                if self.hang_up_after_answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[CountingServer, httpx.AsyncClient, str]]:
    counting = CountingServer()
    server = await asyncio.start_server(counting.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with httpx.AsyncClient(transport=ConnectionStack(retries=1, keepalive_expiry=5.0), timeout=5) as client:
        yield counting, client, url
    server.close()


def test_requests_at_once_have_a_connection_each_and_later_ones_use_them_again() -> None:
    async def play() -> int:
        async with serving() as (counting, client, url):
            for _ in range(3):
                answers = await asyncio.gather(*(client.get(url) for _ in range(5)))
                assert [answer.text for answer in answers] == ["ok"] * 5
            return counting.connections

    assert asyncio.run(play()) == 5


def test_requests_in_turn_share_one_connection() -> None:
    async def play() -> int:
        async with serving() as (counting, client, url):
            for _ in range(4):
                await client.get(url)
            return counting.connections

    assert asyncio.run(play()) == 1


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    async def play() -> int:
        async with serving() as (counting, client, url):
            counting.hang_up_after_answer = True
            for _ in range(3):
                assert (await client.get(url)).text == "ok"
                await asyncio.sleep(0.02)
            return counting.connections

    assert asyncio.run(play()) == 3


def test_a_request_that_was_given_up_takes_no_later_one_with_it() -> None:
    async def play() -> None:
        async with serving() as (_, client, url):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await client.get(url)
            assert (await client.get(url)).text == "ok"

    asyncio.run(play())


def test_nobody_there_is_an_error_and_no_hang() -> None:
    async def play() -> None:
        async with serving() as (_, client, _):
            for _ in range(2):
                with pytest.raises(httpx.ConnectError):
                    await client.get("http://127.0.0.1:9/")

    asyncio.run(play())


def test_the_server_keeps_an_idle_connection_much_longer_than_we_do() -> None:
    environment = VllmSettings(Path("model"), Path("log")).environment()
    assert float(environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > 10 * KEEPALIVE_SECONDS
