"""HTTP connections for many requests at once: one is taken from a stack and put back, whatever their number."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable

import httpx


class ConnectionStack(httpx.AsyncBaseTransport):
    """A transport with as many connections as requests in flight.

    httpx's own pool looks at every connection whenever a request begins or ends, which with 64 in flight takes 7 ms of
    processor time a request; here each connection is a pool of its own, and the one that was used last is used next.
    """

    def __init__(self, retries: int, keepalive_expiry: float) -> None:
        self._retries = retries
        self._limits = httpx.Limits(max_connections=None, keepalive_expiry=keepalive_expiry)
        self._context = ssl.create_default_context()  # making one takes longer than a request
        self._idle: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request over an idle connection, or over a new one. Raises what httpx's own transport raises."""
        one = self._idle.pop() if self._idle else self._new()
        try:
            response = await one.handle_async_request(request)
        except BaseException:
            self._idle.append(one)  # it has closed what broke, and connects anew
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Returning(response.stream, lambda: self._idle.append(one))
        return response

    async def aclose(self) -> None:
        """Close every idle connection."""
        while self._idle:
            await self._idle.pop().aclose()

    def _new(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(verify=self._context, retries=self._retries, limits=self._limits)


class _Returning(httpx.AsyncByteStream):
    """The body of a response; once it is closed its connection is free."""

    def __init__(self, body: httpx.AsyncByteStream, free: Callable[[], None]) -> None:
        self._body, self._free = body, free

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._body:
            yield part

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        finally:
            self._free()
