"""Several training processes as one: brought up together, and ended together with the cause.

A launcher (torchrun, accelerate, attune launch) starts each rank with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
What the ranks tell each other outside of training goes through a store: that they live, that one has failed and why,
and how far the first one is. So a rank that waits in a collective call for one that is gone ends, and says for whom.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from envs.errors import InputError, RunError
from trainers.config import RunConfig, sharing_conflicts
from trainers.trainer_config import trainer_conflicts
from trainers.warm_start_config import warm_start_conflicts

BEAT_SECONDS = 0.5
# How long a rank whose collective call has failed waits to hear why, before it takes itself for the cause.
LOOK_SECONDS = 6.0
SILENT_SECONDS = 4.0  # without a beat, after which a rank that left others in a failed call counts as lost
# How long a rank's main thread has to end by itself once another one failed: it may be held in a collective call.
GRACE_SECONDS = 8.0
FAILED = "failed"


class Ranks:
    """This process among the others. Alone, it waits for nobody and nobody hears it."""

    def __init__(self, timeout: float) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), world_size()
        self._timeout = timeout
        self._over = threading.Event()
        self._cause: str | None = None  # why the others can't go on
        self._beats: dict[int, tuple[str, float]] = {}  # rank: (its last beat, when it was first seen)
        self._store: Any = None
        self._listener: threading.Thread | None = None

    def reached(self, point: str) -> None:
        """Tell the others that this rank is at ``point``."""
        if self.world > 1:
            self._store.set(f"at/{point}", str(self.rank))

    def wait_for(self, point: str) -> None:
        """Wait, however long it takes, until a rank has reached ``point``. Raises RunError when a rank fails first."""
        while self.world > 1 and not self._store.check([f"at/{point}"]):
            if self._cause:
                raise RunError(self._cause)
            time.sleep(BEAT_SECONDS)

    def _start(self, store: Any) -> None:
        """Wait for all ranks and begin to listen. Raises RunError naming those that don't come."""
        self._store = store
        store.set_timeout(timedelta(seconds=self._timeout))
        self._beat(store, 0)
        missing, last = list(self._others), time.monotonic() + self._timeout
        while missing := [rank for rank in missing if not store.check([f"beat/{rank}"])]:
            if time.monotonic() > last:
                raise RunError(
                    f"rank {missing[0]} of {self.world} did not come within trainer.rank_timeout={self._timeout:g} s; "
                    "start all ranks, and look at its output"
                )
            time.sleep(0.05)
        self._listener = threading.Thread(target=self._listen, args=(store.clone(),), daemon=True)
        self._listener.start()

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self.world) if rank != self.rank]

    def _beat(self, store: Any, count: int) -> None:
        store.set(f"beat/{self.rank}", str(count))

    def _listen(self, store: Any) -> None:
        """Beat and hear the others, until the end. A cause that the main thread doesn't end by ends the process."""
        count = 0
        while not self._cause and not self._over.wait(BEAT_SECONDS):
            count += 1
            self._cause = self._heard(store, self._timeout, count)
        if self._cause and not self._over.wait(GRACE_SECONDS):
            os.write(2, f"rank {self.rank} of {self.world} ends: {self._cause}\n".encode())
            os._exit(1)

    def _heard(self, store: Any, patience: float, count: int | None = None) -> str | None:
        """Why this rank can't go on, as ``store`` says; ``count``: the beat to give meanwhile."""
        try:
            if count is not None:
                self._beat(store, count)
            return self._failure(store, patience)
        except RuntimeError as error:
            return f"rank 0, or the launcher that keeps the ranks' store, is lost ({error}); look at its output"

    def _failure(self, store: Any, patience: float) -> str | None:
        """Why a rank can't go on: what it left behind, or that it has been silent for ``patience`` seconds."""
        if store.check([FAILED]):
            return store.get(FAILED).decode()
        now = time.monotonic()
        for rank in self._others:
            if store.check([f"left/{rank}"]):
                continue
            beat = store.get(f"beat/{rank}").decode()
            if self._beats.get(rank, ("", 0.0))[0] != beat:
                self._beats[rank] = (beat, now)
            elif now - self._beats[rank][1] > patience:
                return (
                    f"rank {rank} is lost: it gave no sign for {patience:g} s (killed, out of memory, or its machine "
                    "is gone); look at its output, then resume from the last checkpoint"
                )
        return None

    def _why(self, error: BaseException) -> str | None:
        """What another rank has to do with ``error``; None: nothing. A failed call may be but a consequence."""
        if isinstance(error, RuntimeError):
            last = time.monotonic() + LOOK_SECONDS
            while not self._cause and time.monotonic() < last:
                self._cause = self._heard(self._store, SILENT_SECONDS)
                time.sleep(BEAT_SECONDS / 2)
        return self._cause

    def _leave(self) -> None:
        """Go when all is well; rank 0, whose process may keep the store, goes last."""
        self._store.set(f"left/{self.rank}", "1")
        for rank in self._others if self.rank == 0 else ():
            while not self._cause and not self._store.check([f"left/{rank}"]):
                time.sleep(BEAT_SECONDS / 10)

    def _fail(self, error: BaseException) -> None:
        """Leave the reason to the others, unless one of them was first."""
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, RuntimeError) and "timed out" in reason.lower():
            reason += f"; where a rank may be as late as that, raise trainer.rank_timeout={self._timeout:g} s"
        with suppress(RuntimeError):  # the store is gone, and with it everybody who could hear
            self._store.compare_set(FAILED, "", f"rank {self.rank} of {self.world} failed: {reason}")

    def _end(self) -> None:
        """Stop listening."""
        self._over.set()
        if self._listener:
            self._listener.join(GRACE_SECONDS)


def world_size() -> int:
    """How many processes train together, as their launcher says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_ranks(config: RunConfig) -> None:
    """Raises InputError when the processes that the launcher started can't train this configuration."""
    world, gpus = world_size(), len(config.devices.training)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    problems = sharing_conflicts(config, world)
    problems += trainer_conflicts(config.trainer, config.policy.dtype, world)
    problems += warm_start_conflicts(config.warm_start, config.trainer.micro_batch, world)
    if gpus and here != gpus:
        problems.append(
            f"devices.training: names {gpus} GPUs, and {here} processes train on this machine; start one for each, for "
            "instance with attune launch torchrun"
        )
    if not gpus and config.trainer.deepspeed and config.policy.dtype != "float32":
        problems.append("policy.dtype: DeepSpeed trains in float32 on CPU; set that, or name devices.training")
    if problems:
        raise InputError("\n".join(problems))


@contextmanager
def together(timeout: float, *, on_gpu: bool) -> Iterator[Ranks]:
    """The ranks from their meeting to their end. What fails on one ends all.

    ``timeout``: seconds, for the meeting, for a collective call, and for a rank that gives no sign. A rank that ends
    because of another raises RunError with that one's reason. On GPUs the trainer makes the process group; on CPU it
    is made here, since accelerate would pass no timeout on.
    """
    ranks = Ranks(timeout)
    if ranks.world == 1:
        yield ranks
        return
    store = _meet(ranks, on_gpu)
    ranks._start(store)
    try:
        yield ranks
        ranks._leave()
    except BaseException as error:
        cause = ranks._why(error)
        if cause:
            raise RunError(cause) from error
        ranks._fail(error)
        raise
    finally:
        if sys.exc_info()[0]:
            time.sleep(2 * BEAT_SECONDS)  # so that all have heard before a process that keeps the store ends
        ranks._end()


def _meet(ranks: Ranks, on_gpu: bool) -> Any:
    """The store through which the ranks hear of each other."""
    import torch

    distributed: Any = torch.distributed
    limit = timedelta(seconds=ranks._timeout)
    try:
        store, rank, world = next(distributed.rendezvous("env://", timeout=limit))
        if not on_gpu:
            distributed.init_process_group(
                "gloo", store=distributed.PrefixStore("training", store), rank=rank, world_size=world, timeout=limit
            )
    except RuntimeError as error:
        raise RunError(
            f"rank {ranks.rank} of {ranks.world}: the ranks did not meet at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} within trainer.rank_timeout={ranks._timeout:g} s ({error}); start all of "
            "them, and look at the output of each"
        ) from error
    return distributed.PrefixStore("ranks", store)
