"""Made-up runs for the watch: what a run records at each step, for clean ones and for ones that are gamed.

Sizes are those of a small run: the mean total of a step of 32 dialogues scatters by 0.06 from step to step, a held-out
evaluation of 48 by 0.03. ``docs/watch.md`` shows the rates that ``simulate`` gives.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trainers.watch import Alarm, Watch
from trainers.watch_rules import WatchRules

STEPS = 60


@dataclass(frozen=True)
class Course:
    """How a made-up run goes: expected trained reward and held-out score at each step, and their scatter."""

    trained: Callable[[int], float]
    held_out: Callable[[int], float]
    noise: float = 0.06  # of a step's trained reward
    held_out_noise: float = 0.03
    walk: float = 0.0  # a random walk of the policy itself, per step, which both see


def learning(step: int, low: float = 0.1, high: float = 0.5, pace: float = 8.0) -> float:
    """A learning curve that flattens."""
    return high - (high - low) * math.exp(-step / pace)


def sigmoid(step: int, low: float, high: float, middle: float, width: float) -> float:
    """A phrase that wins is found, and spreads."""
    return low + (high - low) / (1 + math.exp((middle - step) / width))


CLEAN = {
    "learns; held-out keeps up": Course(learning, lambda step: 0.02 + 0.8 * learning(step)),
    "learns; half of it arrives": Course(learning, lambda step: 0.1 + 0.5 * learning(step)),
    "learns; held-out is noisy": Course(learning, lambda step: 0.8 * learning(step), held_out_noise=0.08),
    "learns nothing": Course(lambda step: 0.4, lambda step: 0.4),
    "wanders": Course(lambda step: 0.4, lambda step: 0.4, walk=0.015),
}
GAMED = {
    "a phrase wins": Course(lambda step: sigmoid(step, 0.15, 0.95, 8, 2), lambda step: 0.3),
    "a phrase wins; held-out falls": Course(
        lambda step: sigmoid(step, 0.15, 0.95, 8, 2), lambda step: 0.4 - 0.2 * sigmoid(step, 0, 1, 8, 2)
    ),
    "found after 20 clean steps": Course(
        lambda step: learning(step) + sigmoid(step, 0, 0.45, 28, 2), lambda step: 0.02 + 0.8 * learning(step)
    ),
    "a slow drift over 60 steps": Course(lambda step: 0.2 + 0.01 * step, lambda step: 0.3),
}


def lines(
    course: Course, seed: str, steps: int = STEPS, every: int = 1
) -> Iterator[tuple[dict[str, Any], float | None]]:
    """A step's line of metrics.jsonl, with the held-out score of the evaluation after it; one ``every`` steps."""
    draw, level = random.Random(seed), 0.0
    for step in range(steps):
        level += draw.gauss(0, course.walk)
        gain = learning(step, 0, 1)
        line = {
            "step": step,
            "reward": _share(course.trained(step) + level + draw.gauss(0, course.noise)),
            "reply_tokens": 12 * (1 + 0.2 * gain) * math.exp(draw.gauss(0, 0.06)),
            "repetition": _share(0.02 + draw.gauss(0, 0.01)),
            "kl": 0.1 * gain * math.exp(draw.gauss(0, 0.2)),
            "entropy": 0.5 * (1 - 0.3 * gain) * math.exp(draw.gauss(0, 0.1)),
        }
        held_out = _share(course.held_out(step) + level + draw.gauss(0, course.held_out_noise))
        yield line, held_out if step % every == every - 1 else None


def simulate(course: Course, rules: WatchRules, seed: str, steps: int = STEPS, every: int = 1) -> list[Alarm]:
    """Every alarm of one made-up run."""
    watch, alarms = Watch(rules), []
    for line, held_out in lines(course, seed, steps, every):
        alarms += watch.step(line)
        if held_out is not None:
            alarms += watch.evaluation(line["step"], {"judge": held_out})
    return alarms


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def simulate_all(name: str, course: Course, rules: WatchRules, runs: int, every: int = 1) -> list[list[Alarm]]:
    """The alarms of ``runs`` made-up runs, (runs,) lists; each run draws from a seed of its own."""
    return [simulate(course, rules, f"{name} {number}", every=every) for number in range(runs)]
