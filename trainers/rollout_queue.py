"""The dialogues of a step and of those after it, in flight at once: what training waits for is only the oldest step.

With a staleness of 0 a step's dialogues begin when its weights are there, and training waits for them: on-policy. With
n, those of the n next steps are in flight too, so that clients answer and the engine samples while the trainer
computes (asynchronous RL, arXiv 2505.24298). Which adapter samples a step follows from the step alone: the one of n
steps before, or the first. So nothing depends on who is faster, and a resumed run does what an undisturbed one does.

All steps share the slots for dialogues, older ones first; a step's slots that its stragglers leave free are taken by
the next step's. No more than n + 1 steps are ever begun and not yet trained on.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from trainers.background import BackgroundLoop
from trainers.curriculum import Schedule
from trainers.rollouts import Played, RolloutWorker


class Version(NamedTuple):
    """Published weights: the step that they are of, and their name on the policy server."""

    step: int
    name: str


class _Begun(NamedTuple):
    version: Version
    played: Future[Played]


class Taken(NamedTuple):
    """A step's dialogues: what was played, by which version, and how long training waited for it, in seconds."""

    played: Played
    version: Version
    waited: float


@dataclass
class RolloutQueue:
    """Begins the dialogues of up to ``max_staleness`` steps ahead of training; ``steps`` is how many there are.

    ``earlier``: for steps that a stopped run had begun, the version that they began with, published again.
    """

    worker: RolloutWorker
    schedule: Schedule
    loop: BackgroundLoop
    max_staleness: int
    steps: int
    earlier: dict[int, Version] = field(default_factory=dict)
    _begun: dict[int, _Begun] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.worker.concurrency)

    def begin(self, step: int, rows: range, version: Version) -> None:
        """Begin every step up to ``max_staleness`` ahead of ``step``, whose weights are ``version``. ``rows``: ours."""
        for number in range(step, min(step + self.max_staleness + 1, self.steps)):
            if number not in self._begun:
                planned = [group for group in self.schedule.of(number) for _ in range(self.worker.group_size)]
                by = self.earlier.get(number, version)
                work = self.worker.play(planned[rows.start : rows.stop], number, rows.start, by.name, self._slots)
                self._begun[number] = _Begun(by, self.loop.start(work))

    def take(self, step: int) -> Taken:
        """Wait for the dialogues of a step that was begun."""
        started = time.monotonic()
        version, played = self._begun.pop(step)
        return Taken(played.result(), version, time.monotonic() - started)

    @property
    def ahead(self) -> dict[int, Version]:
        """The steps that were begun and not taken, and their versions."""
        return {step: begun.version for step, begun in sorted(self._begun.items())}
