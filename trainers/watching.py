"""The watch at work in a run: what is measured for it at each step, and what becomes of its alarms."""

from __future__ import annotations

import json
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.trajectory import Trajectory
from rewards.canaries import Canary, score_canaries
from rewards.reward import Reward
from trainers.evaluation import MakeClient, SupporterFactory, play
from trainers.run_files import append_lines
from trainers.scoring import TOTAL_ABSOLUTE
from trainers.watch import Alarm, Watch, halt_on

ALARMS = "alarms.jsonl"
HELD_OUT, CANARIES = "held_out", "canaries"  # keys of a line of metrics.jsonl
HeldOut = dict[str, float | None]


@dataclass(frozen=True)
class Look:
    """Held-out dialogues with the policy as it is: one with each card, the same cards and seeds each time.

    ``factory`` makes supporters for an adapter's name. ``judge``: one that gives no reward; None: none is asked.
    """

    factory: Callable[[str | None], SupporterFactory]
    cards: Sequence[PersonaCard]
    spec: ClientSpec
    client: MakeClient
    judge: Reward | None
    concurrency: int
    deadline_seconds: float

    async def __call__(self, adapter: str | None) -> HeldOut:
        """Means in [0, 1] over the dialogues that were measured; None where there is none."""
        talks = await play(
            self.factory(adapter),
            self.cards,
            self.spec,
            (0,),
            client=self.client,
            concurrency=self.concurrency,
            deadline_seconds=self.deadline_seconds,
        )
        finals = [None if talk.final_emotion is None else talk.final_emotion / 100 for talk in talks]
        found: HeldOut = {"emotion": _mean(finals)}
        if self.judge:
            found[self.judge.name] = _mean([await _value(self.judge, talk) for talk in talks])
        return found


@dataclass(frozen=True)
class Watcher:
    """Measures before a step's dialogues, hears each line of metrics.jsonl, and writes alarms down.

    ``tell`` is shown each alarm's text. What it measures stands in the line, so that a resumed run hears it again.
    """

    watch: Watch
    every: int
    look: Callable[[str | None], Awaitable[HeldOut]]
    canaries: Sequence[Canary]
    rewards: Sequence[Reward]
    folder: Path
    tell: Callable[[str], None] = lambda text: None

    async def measure(self, step: int, adapter: str | None) -> dict[str, Any]:
        """What is measured with ``adapter`` before the dialogues of ``step``, for its line of metrics.jsonl."""
        measured: dict[str, Any] = {}
        if step % self.every == 0:
            measured[HELD_OUT] = await self.look(adapter)
        if self.canaries:
            measured[CANARIES] = await score_canaries(self.canaries, self.rewards)
        return measured

    def resume(self, metrics: Path) -> None:
        """Hear again what an interrupted run has recorded; its alarms were told already."""
        if metrics.exists():
            for line in metrics.read_text(encoding="utf-8").splitlines():
                self._alarms(json.loads(line))

    def hear(self, line: Mapping[str, Any]) -> None:
        """A finished step. Raises RunError when an alarm halts the run."""
        alarms = self._alarms(line)
        if alarms:
            append_lines(self.folder / ALARMS, [alarm.model_dump_json() for alarm in alarms])
        for alarm in alarms:
            self.tell(f"alarm: {alarm.text}")
        halt_on(alarms)

    def _alarms(self, line: Mapping[str, Any]) -> list[Alarm]:
        step, alarms = int(line["step"]), []
        if HELD_OUT in line:
            alarms += self.watch.evaluation(step, line[HELD_OUT])
        if CANARIES in line:
            alarms += self.watch.canaries(step, line[CANARIES])
        # Win shares have the same mean in every group: only the ratings beside them show whether the reward rises.
        rated = line.get("rewards", {}).get(TOTAL_ABSOLUTE)
        return [*alarms, *self.watch.step({**line, "reward": rated["mean"]} if rated else line)]


async def _value(reward: Reward, talk: Trajectory) -> float | None:
    try:
        return (await reward.score(talk)).value
    except Exception:  # what can't be scored is data; the watch says when it lasts
        return None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
