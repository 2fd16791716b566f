"""Several servers that hold the same policy: which one is asked, and what happens when one fails.

A dialogue stays with its replica, which has the dialogue's prompt in its prefix cache, and dialogues with the same
opening prompt begin at the same replica. A request is idempotent (the same ids, seed and adapter give the same reply),
so one that fails is asked again elsewhere and its dialogue goes on from there. A replica that fails again and again is
left out until it takes an adapter once more; the last one never is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from envs.errors import RunError
from trainers.policy_server import EngineReport
from trainers.vllm_process import VllmProcess

SLACK = 8  # requests in flight beyond the least busy replica's, from which on an opening prompt is computed elsewhere
FAILURES = 3  # in a row, after which a replica is left out
ATTEMPTS = 3  # replicas that a request is asked of
REMEMBERED = 4096  # dialogues, and openings, whose replica is known; for one that is forgotten a prompt is recomputed

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class ReplicaFailed(RunError):
    """A replica did not do what another one may do. ``reason`` is short; ``final``: it would fail again."""

    def __init__(self, message: str, reason: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.reason, self.final = reason, final


@dataclass(eq=False)
class Replica:
    """One server. ``process`` is None when it isn't ours; ``left_out``: why it isn't asked, None while it is."""

    url: str
    process: VllmProcess | None = None
    in_flight: int = 0  # requests
    placed: int = 0  # dialogues that began here since the last publish
    requests: int = 0  # since the last report, failed ones too
    failures: int = 0  # in a row
    left_out: str | None = None

    @property
    def dead(self) -> bool:
        """Whether its process is known to have ended."""
        return self.process is not None and not self.process.alive


class Replicas:
    """Chooses among replicas, in time linear in their number. May be used from several threads and event loops."""

    def __init__(self, members: Sequence[Replica]) -> None:
        self.members = tuple(members)
        self._homes: OrderedDict[int, tuple[Replica, int]] = OrderedDict()  # by dialogue; with its opening
        self._openings: OrderedDict[int, Replica] = OrderedDict()
        self._asked_elsewhere = 0
        self._lock = threading.Lock()
        # Where nothing else decides, the processes of a run begin at different replicas.
        rank = int(os.environ.get("RANK", "0"))
        self._order = {member: (place - rank) % len(self.members) for place, member in enumerate(self.members)}

    @property
    def left_out(self) -> dict[str, str]:
        """The replicas that are not asked, by URL, and why."""
        return {member.url: member.left_out for member in self.members if member.left_out}

    async def ask(
        self, ask: Callable[[Replica], Awaitable[Answer]], session: int | None, opening: Callable[[], int]
    ) -> Answer:
        """What ``ask`` gets from the dialogue's replica, or from up to two others when that one fails.

        ``session`` names the dialogue; None: a request on its own. ``opening`` tells openings apart. Raises what the
        last replica raised; any error but ReplicaFailed at once.
        """
        tried: list[Replica] = []
        error: ReplicaFailed | None = None
        while len(tried) < ATTEMPTS and (replica := self._choose(session, opening, tried)):
            try:
                answer = await ask(replica)
            except ReplicaFailed as failure:
                error = failure
                tried.append(replica)
                self.failed(replica, failure)
            else:
                replica.failures = 0
                return answer
            finally:
                with self._lock:
                    replica.in_flight -= 1
        assert error is not None  # one replica is always in, and was asked
        raise error

    def failed(self, replica: Replica, error: ReplicaFailed) -> None:
        """Count a failure; leave the replica out when it is dead, would fail again, or has failed too often."""
        with self._lock:
            replica.failures += 1
            too_often = replica.failures >= FAILURES
        if error.final or too_often or replica.dead:
            self.leave_out(replica, error.reason)

    def leave_out(self, replica: Replica, reason: str) -> None:
        """Ask it no more, unless it is the last one."""
        with self._lock:
            others = [member for member in self.members if member is not replica and not member.left_out]
            if replica.left_out or not others:
                return
            replica.left_out = reason
        log.warning(
            "the policy server at %s is left out (%s); its dialogues go on at %s. It joins again when an adapter is "
            "published and it answers",
            replica.url,
            reason,
            ", ".join(member.url for member in others),
        )

    def join(self, replica: Replica) -> None:
        """Ask it again: it answers, and has the adapters."""
        with self._lock:
            replica.failures = 0
            joined, replica.left_out = replica.left_out is not None, None
        if joined:
            log.warning("the policy server at %s takes part again", replica.url)

    def published(self) -> None:
        """A new adapter is sampled from: no prompt is cached under it yet, so each replica begins alike."""
        with self._lock:
            for member in self.members:
                member.placed = 0

    def follow(self, left_out: Mapping[str, str]) -> None:
        """Leave out exactly these, by URL: another process has found out."""
        for member in self.members:
            if member.url not in left_out:
                self.join(member)
        for member in self.members:
            if member.url in left_out:
                self.leave_out(member, left_out[member.url])

    def report(self) -> EngineReport:
        """What was asked of each since the last report, and who is left out."""
        with self._lock:
            requests = {member.url: member.requests for member in self.members}
            report = EngineReport(requests, self._asked_elsewhere, self.left_out)
            self._asked_elsewhere = 0
            for member in self.members:
                member.requests = 0
        return report

    def _choose(self, session: int | None, opening: Callable[[], int], tried: Sequence[Replica]) -> Replica | None:
        """The replica that is asked next, which counts the request as in flight; None: all that are in were tried."""
        with self._lock:
            candidates = [member for member in self.members if not member.left_out and member not in tried]
            if not candidates:
                return None
            chosen = self._least(candidates) if session is None else self._home(candidates, session, opening)
            chosen.in_flight += 1
            chosen.requests += 1
            self._asked_elsewhere += bool(tried)
            return chosen

    def _home(self, candidates: Sequence[Replica], session: int, opening: Callable[[], int]) -> Replica:
        """Where a dialogue is, or where it begins: with those of its opening, if that isn't much busier than others."""
        home, begun = self._homes.get(session, (None, None))
        if home is not None and home in candidates:
            return home
        least, key = self._least(candidates), opening() if begun is None else begun
        near = self._openings.get(key)
        chosen = near if near is not None and near in candidates and near.in_flight - least.in_flight < SLACK else least
        chosen.placed += 1
        _remember(self._homes, session, (chosen, key))
        _remember(self._openings, key, chosen)
        return chosen

    def _least(self, candidates: Sequence[Replica]) -> Replica:
        return min(candidates, key=lambda member: (member.in_flight, member.placed, self._order[member]))


Key = TypeVar("Key")
Value = TypeVar("Value")


def _remember(known: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > REMEMBERED:
        known.popitem(last=False)
