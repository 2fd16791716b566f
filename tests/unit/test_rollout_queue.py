"""Which steps' dialogues are in flight when, with whose weights, and how many at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from typing import Any, cast

import pytest

from trainers.background import BackgroundLoop
from trainers.curriculum import Rotation
from trainers.rollout_queue import RolloutQueue, Version
from trainers.rollouts import Played, RolloutWorker


class Worker:
    """Plays steps of two dialogues that end when they are told to."""

    group_size = 2

    def __init__(self, concurrency: int = 8, held: tuple[int, ...] = ()) -> None:
        self.concurrency, self.begun, self.order = concurrency, list[tuple[int, int, str]](), list[int]()
        self.in_flight = self.most = 0
        self.held = held
        self.free = asyncio.Event()

    async def play(
        self, planned: list[Any], step: int, first_row: int, adapter: str, slots: asyncio.Semaphore
    ) -> Played:
        self.begun.append((step, first_row, adapter))

        async def dialogue() -> None:
            async with slots:
                self.order.append(step)
                self.in_flight += 1
                self.most = max(self.most, self.in_flight)
                await asyncio.sleep(0.001)
                if step in self.held:
                    await self.free.wait()
                self.in_flight -= 1

        await asyncio.gather(*(dialogue() for _ in planned))
        return Played((), ())

    async def let_go(self) -> None:
        self.free.set()


def queue_of(worker: Worker, loop: BackgroundLoop, max_staleness: int, steps: int = 5) -> RolloutQueue:
    schedule = Rotation(["anna"], "mild", seed=0, groups=1)
    return RolloutQueue(cast(RolloutWorker, worker), schedule, loop, max_staleness, steps)


def versions(max_staleness: int, steps: int = 5) -> list[tuple[int, str]]:
    """The step of each rollout and the version that samples it, when every step publishes one."""
    worker = Worker()
    with BackgroundLoop() as loop:
        queue = queue_of(worker, loop, max_staleness, steps)
        for step in range(steps):
            queue.begin(step, range(0, 2), Version(step, f"v{step}"))
            queue.take(step)
            assert len(queue.ahead) <= max_staleness
    return [(step, adapter) for step, _, adapter in worker.begun]


def test_without_staleness_every_step_is_sampled_by_its_own_weights():
    assert versions(0) == [(0, "v0"), (1, "v1"), (2, "v2"), (3, "v3"), (4, "v4")]


def test_with_staleness_the_version_follows_from_the_step_alone():
    assert versions(1) == [(0, "v0"), (1, "v0"), (2, "v1"), (3, "v2"), (4, "v3")]
    assert versions(2) == [(0, "v0"), (1, "v0"), (2, "v0"), (3, "v1"), (4, "v2")]
    assert versions(9, steps=3) == [(0, "v0"), (1, "v0"), (2, "v0")]


def test_the_next_step_is_played_while_training_has_not_come_to_it():
    worker = Worker(held=(1,))
    with BackgroundLoop() as loop:
        queue = queue_of(worker, loop, 1)
        queue.begin(0, range(0, 2), Version(0, "v0"))
        assert queue.take(0).version == Version(0, "v0")  # step 1 is in flight meanwhile, and nobody waits for it
        assert queue.ahead == {1: Version(0, "v0")}
        loop.run(worker.let_go())
        queue.begin(1, range(0, 2), Version(1, "v1"))
        assert queue.take(1).version == Version(0, "v0")


def test_slots_are_shared_by_all_steps_and_older_steps_come_first():
    worker = Worker(concurrency=3)
    with BackgroundLoop() as loop:
        queue = queue_of(worker, loop, 4)
        queue.begin(0, range(0, 2), Version(0, "v0"))
        for step in range(5):
            queue.take(step)
    assert worker.most == 3 and worker.order == sorted(worker.order) and len(worker.order) == 10


def test_each_rank_plays_its_own_rows():
    worker = Worker()
    with BackgroundLoop() as loop:
        queue = queue_of(worker, loop, 0)
        queue.begin(0, range(1, 2), Version(0, "v0"))
        queue.take(0)
    assert worker.begun == [(0, 1, "v0")] and worker.order == [0]


def test_steps_that_a_stopped_run_had_begun_begin_with_the_version_that_they_had():
    worker = Worker()
    with BackgroundLoop() as loop:
        queue = queue_of(worker, loop, 1)
        queue.earlier[3] = Version(2, "v2-again")
        queue.begin(3, range(0, 2), Version(3, "v3"))
        assert queue.take(3).version == Version(2, "v2-again")
        assert queue.ahead == {4: Version(3, "v3")}
        queue.take(4)


def test_a_stopped_run_leaves_no_dialogue_behind():
    worker = Worker(held=(0,))
    with BackgroundLoop() as loop:
        queue = queue_of(worker, loop, 0)
        queue.begin(0, range(0, 2), Version(0, "v0"))
        begun = queue._begun[0].played
    with pytest.raises(CancelledError):
        begun.result(timeout=5)


def test_what_fails_in_the_background_is_raised_to_whoever_waits():
    async def fails() -> None:
        raise ConnectionError("gone")

    with BackgroundLoop() as loop, pytest.raises(ConnectionError, match="gone"):
        loop.run(fails())
