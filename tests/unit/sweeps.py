"""A made-up sweep for tests: copies of one small finished run, with held-out results as they are wanted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainers.manifest import write_json, write_manifest
from trainers.sweep import GRID, dump_grid, load_grid

BASE = 10.0  # every base dialogue's final emotion


def make_sweep(out: Path, run: Path, tuned: Mapping[str, Mapping[int, list[float | None]]], **grid: Any) -> Path:
    """Write a sweep of finished cells. ``run``: the folder that they are copies of, with two cards and two held-out
    seeds; ``tuned``: by arm and training seed, the final emotions of card a, seeds 0 and 1, then of card b."""
    out.mkdir()
    seeds = sorted({seed for by_seed in tuned.values() for seed in by_seed})
    text = yaml.safe_dump({"seeds": seeds, "arms": [{"name": arm} for arm in tuned]} | grid)
    (out / GRID).write_text(text, encoding="utf-8")
    (out / GRID).write_text(dump_grid(load_grid(out / GRID)), encoding="utf-8")
    for arm, by_seed in tuned.items():
        for seed, finals in by_seed.items():
            folder = out / f"{arm}-seed{seed}"
            shutil.copytree(run, folder)
            set_finals(folder, "base", [BASE] * 4)
            set_finals(folder, "tuned", finals)
            write_manifest(folder, "2026-01-01T00:00:00+00:00")
    return out


def set_finals(folder: Path, side: str, finals: list[float | None]) -> None:
    """Change the final emotions of an evaluation's outcomes, which stand by card, then by seed."""
    path = folder / "evaluation" / side / "evaluation.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for outcome, final in zip(data["outcomes"], finals, strict=True):
        outcome["final_emotion"] = final
    write_json(path, data)
