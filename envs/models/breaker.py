"""A circuit breaker: while a server is down, one request at a time finds out when it is back, and the others wait.

Closed: everything passes. Open, after so many failures in a row: nothing passes. Half-open, when the wait is over: one
probe passes; its success closes the breaker, its failure doubles the wait up to a bound. Whoever waits is never failed
by the breaker, only by a deadline of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from envs.models.endpoint_spec import BreakerSettings

log = logging.getLogger(__name__)


@dataclass
class Opening:
    """One time that the breaker was open. Times are in seconds since the epoch; ``closed`` is None while it is open."""

    opened: float
    reason: str
    closed: float | None = None
    probes: int = 0

    @property
    def seconds(self) -> float | None:
        """How long it was open; None while it still is."""
        return None if self.closed is None else self.closed - self.opened


@dataclass(frozen=True)
class Permit:
    """Leave to send one request. ``opening`` is how often the breaker had opened by then."""

    opening: int
    probe: bool


class Breaker:
    """Guards one endpoint. Its state outlives event loops; it is used from one thread at a time.

    Every permit is given back once, by ``succeeded``, ``failed`` or ``abandoned``. What comes of a request that was
    sent before the breaker opened says nothing of the server's state after it, and is ignored.
    """

    def __init__(self, name: str, settings: BreakerSettings) -> None:
        self.openings: list[Opening] = []
        self._name, self._settings = name, settings
        self._failures_in_a_row = 0
        self._open = False
        self._probing = False
        self._wait = settings.open_seconds
        self._probe_at = 0.0  # monotonic seconds
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether requests are held back; a probe may be under way."""
        return self._open

    async def admit(self) -> Permit:
        """Wait until a request may be sent. Bounded only by the caller's own deadline."""
        while self._open:
            wait = self._probe_at - time.monotonic()
            if not self._probing and wait <= 0:
                self._probing = True
                self.openings[-1].probes += 1
                return Permit(len(self.openings), probe=True)
            await self._change(None if self._probing else wait)
        return Permit(len(self.openings), probe=False)

    def succeeded(self, permit: Permit) -> None:
        """The server answered, be it with a refusal."""
        if permit.probe:
            self._close()
        elif self._counts(permit):
            self._failures_in_a_row = 0

    def failed(self, permit: Permit, reason: str) -> None:
        """The server could not be reached, broke, or did not answer in time."""
        if permit.probe:
            self._wait = min(2 * self._wait, self._settings.max_open_seconds)
            self._hold_back()
        elif self._counts(permit):
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= self._settings.failures:
                self._trip(reason)

    def abandoned(self, permit: Permit) -> None:
        """The request was given up before it told anything; another may be the probe."""
        if permit.probe:
            self._probing = False
            self._wake()

    def _counts(self, permit: Permit) -> bool:
        return not self._open and permit.opening == len(self.openings)

    def _trip(self, reason: str) -> None:
        self._open = True
        self._wait = self._settings.open_seconds
        self.openings.append(Opening(time.time(), reason))
        self._hold_back()
        log.warning("%s: open after %d failures in a row: %s", self._name, self._failures_in_a_row, reason)

    def _close(self) -> None:
        opening = self.openings[-1]
        opening.closed = time.time()
        self._open = self._probing = False
        self._failures_in_a_row = 0
        self._wake()
        log.warning("%s: closed after %.1f s and %d probes", self._name, opening.seconds, opening.probes)

    def _hold_back(self) -> None:
        self._probing = False
        self._probe_at = time.monotonic() + self._wait
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self, at_most: float | None) -> None:
        """Until something changed, or ``at_most`` seconds."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(at_most):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)
