"""Other rewards over a saved run: the same dialogues, scored again from the record alone.

A reward is pure over a trajectory, so what it would have said of a run can be known afterwards, and the run's own
rewards give back exactly what the run recorded.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.receipts import read_log
from envs.trajectory import Record, Stop, Trajectory
from rewards.registry import REWARDS
from rewards.reward import Reward, ScoredTrajectory, scored
from trainers.config import RewardTerm
from trainers.evaluation import TRAJECTORIES
from trainers.manifest import Problem, check_files, is_trajectory_log, read_manifest


class Rescored(Record):
    """One dialogue, scored again: where it lies, its total in [0, 1] or None, and each reward's score."""

    file: str
    dialogue_id: str
    total: float | None
    scores: dict[str, float | None]
    evidence: dict[str, str]


def rescore(path: Path, terms: Sequence[RewardTerm]) -> list[Rescored]:
    """Score every dialogue of ``path``: a finished run, or one file of trajectories.

    Raises InputError when the rewards aren't known or the record isn't what its receipts say.
    """
    if unknown := [term.name for term in terms if term.name not in REWARDS]:
        raise InputError(f"--reward: there is no reward named {unknown[0]!r}; known: {', '.join(REWARDS)}")
    rewards = [(REWARDS[term.name](), term.weight) for term in terms]
    found: list[Rescored] = []
    for file in _logs(path):
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        results = asyncio.run(_score([line.trajectory for line in read_log(file)], rewards))
        found += [_rescored(name, result) for result in results]
    if not found:
        raise InputError(f"{path}: holds no dialogue")
    return found


def _logs(path: Path) -> list[Path]:
    """The trajectory files of a run, as its manifest names them, after their hashes were checked."""
    if not path.is_dir():
        return [path]
    if not (path / "manifest.json").exists():
        return [path / TRAJECTORIES]  # the folder of one evaluation
    try:
        manifest = read_manifest(path)
        check_files(path, manifest)
    except Problem as found:
        raise InputError(f"{path / found.file}: {found.message}; a changed run is not scored again") from found
    return [path / entry["path"] for entry in manifest["files"] if is_trajectory_log(Path(entry["path"]))]


async def _score(trajectories: Sequence[Trajectory], rewards: Sequence[tuple[Reward, float]]) -> list[ScoredTrajectory]:
    return [await scored(trajectory, rewards) for trajectory in trajectories]


def _rescored(file: str, result: ScoredTrajectory) -> Rescored:
    failed = result.trajectory.stop is Stop.ERROR
    return Rescored(
        file=file,
        dialogue_id=result.trajectory.dialogue_id,
        total=None if failed else result.total,
        scores={score.name: score.value for score in result.scores},
        evidence={score.name: score.evidence for score in result.scores},
    )


def recorded_totals(path: Path) -> dict[str, float | None]:
    """What a run recorded as the total of each training dialogue, by dialogue id; empty where it kept no scores."""
    file = path / "scores.jsonl"
    if not path.is_dir() or not file.exists():
        return {}
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_bytes().splitlines()]
    return {line["dialogue_id"]: line["value"] for line in lines}
