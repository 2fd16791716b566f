"""``attune sweep`` as a command, with a stand-in for ``attune train`` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from envs.errors import InputError
from scripts import attune, sweep_runs
from tests.unit.small_run import make_run
from trainers.config_file import dump_config
from trainers.manifest import write_manifest
from trainers.sweep import cells_of, load_grid

# Copies a finished run to where the arguments say, with the resolved config; an arm named "broken" fails half way.
TRAIN = """
import shutil, sys
from pathlib import Path
keys = dict(argument.split("=", 1) for argument in sys.argv[2:] if "=" in argument)
folder = Path(keys["run.dir"]) / keys["run.name"]
print("training", keys["run.name"], *[word for word in sys.argv[2:] if word in ("--resume", "--overwrite")])
if "--overwrite" in sys.argv or "--resume" in sys.argv:
    shutil.rmtree(folder)
if folder.name.startswith("broken") and not (folder.parent / "mended").exists():
    folder.mkdir()
    (folder / "provenance.json").write_text("{}")
    print("error: the server is gone", file=sys.stderr)
    sys.exit(1)
shutil.copytree(sys.argv[1], folder)
"""
GRID = {"seeds": [0, 1], "arms": [{"name": "fine"}, {"name": "broken", "trainer.steps": 5}]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("sweep") / "small")
    (folder / "config.yaml").unlink()  # a cell's own is compared with the grid; the copy's would be another's
    write_manifest(folder, "2026-01-01T00:00:00+00:00")
    return folder


@pytest.fixture
def grid(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sweep_runs, "TRAIN", (sys.executable, "-c", TRAIN, str(finished)))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID), encoding="utf-8")
    return tmp_path / "grid.yaml"


def sweep(grid: Path, out: Path, *more: str) -> int:
    return attune.main(["sweep", "--config", str(grid), "--out", str(out), *more])


def states(out: Path) -> dict[str, Any]:
    arms = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["arms"]
    return {f"{arm['name']}-{cell['seed']}": cell["problem"] for arm in arms for cell in arm["cells"]}


def test_a_failing_cell_leaves_the_others_alone_and_resuming_mends_it_and_it_only(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep(grid, out) == 1
    told = capsys.readouterr()
    assert "[2/4] broken-seed0: failed with status 1: the server is gone" in told.err
    assert "broken-seed1: the server is gone" in told.out
    gone = "the server is gone"
    assert states(out) == {"fine-0": None, "fine-1": None, "broken-0": gone, "broken-1": gone}
    assert (out / "sweep.png").exists()
    assert (out / "broken-seed0.log").read_text(encoding="utf-8").splitlines()[-1] == "error: the server is gone"

    times = {path: path.stat().st_mtime_ns for path in (out / "fine-seed0").rglob("*")}
    (out / "mended").touch()
    (out / "broken-seed1" / "checkpoints" / "checkpoint-10").mkdir(parents=True)
    (out / "broken-seed1" / "checkpoints" / "checkpoint-10" / "COMPLETE").touch()
    assert sweep(grid, out, "--resume") == 0
    told = capsys.readouterr().err
    assert "fine-seed0: finished already" in told
    assert "broken-seed0 | training broken-seed0 --overwrite" in told
    assert "broken-seed1 | training broken-seed1 --resume" in told
    assert set(states(out).values()) == {None}
    assert {path: path.stat().st_mtime_ns for path in (out / "fine-seed0").rglob("*")} == times


def test_two_at_once_share_the_cores_and_give_the_same_report(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_runs.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert sweep_runs._environment(2)["OMP_NUM_THREADS"] == "2"
    assert sweep(grid, tmp_path / "one") == sweep(grid, tmp_path / "two", "--jobs", "2") == 1
    assert (tmp_path / "one" / "sweep.json").read_bytes() == (tmp_path / "two" / "sweep.json").read_bytes()


def test_a_folder_of_another_sweep_is_refused(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine, other = load_grid(grid), load_grid(grid, ["trainer.kl=0.3"])
    sweep_runs.take_folder(out, mine, [], resume=False)
    with pytest.raises(InputError, match="holds a sweep already"):
        sweep_runs.take_folder(out, mine, [], resume=False)
    with pytest.raises(InputError, match="is not what this sweep would be"):
        sweep_runs.take_folder(out, other, [], resume=True)
    sweep_runs.take_folder(out, mine, [], resume=True)


def test_a_cell_that_ran_with_another_config_is_refused(grid: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", load_grid(grid)
    cells = cells_of(mine, grid, out)
    kept = cells[0].folder / "config.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(dump_config(cells[0].config), encoding="utf-8")
    sweep_runs.take_folder(out, mine, cells, resume=False)
    kept.write_text(dump_config(cells[0].config).replace("steps: 24", "steps: 25"), encoding="utf-8")
    with pytest.raises(InputError, match="is not what the grid says"):
        sweep_runs.take_folder(out, mine, cells, resume=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --config GRID and --out DIR"),
        (["--config", "configs/sweeps/demo.yaml"], "give --config GRID and --out DIR"),
        (["--report", "x", "--out", "y"], "--report runs nothing"),
        (["--config", "configs/nothing.yaml", "--out", "x"], "grids here: configs/sweeps/demo.yaml"),
    ],
)
def test_what_is_missing_on_the_command_line_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attune.main(["sweep", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_command_loads_nothing_heavy_before_it_draws() -> None:
    heavy = ("matplotlib", "torch", "transformers")
    code = f"import sys, scripts.commands.sweep; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
