"""A sweep's grid: what it says, what it refuses, and the configuration of each cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.errors import InputError
from scripts.sweep_runs import check_cells
from trainers.sweep import _as_yaml, cells_of, dump_grid, load_grid

SHIPPED = Path("configs/sweeps/demo.yaml")
ARMS = [{"name": "grpo"}, {"name": "short", "trainer.steps": 5}]


def written(tmp_path: Path, **data: Any) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"seeds": [0], "arms": ARMS} | data, sort_keys=False), encoding="utf-8")
    return path


def refused(tmp_path: Path, overrides: tuple[str, ...] = (), **data: Any) -> str:
    path = written(tmp_path, **data)
    with pytest.raises(InputError) as error:
        check_cells(cells_of(load_grid(path, overrides), path, tmp_path / "out"), path, 1)
    return str(error.value)


def test_an_arm_is_the_base_with_its_own_keys(tmp_path: Path) -> None:
    path = written(tmp_path, base="configs/demo.yaml", seeds=[3, 4])
    cells = cells_of(load_grid(path, ["trainer.kl=0.2"]), path, tmp_path / "out")
    assert [cell.name for cell in cells] == ["grpo-seed3", "short-seed3", "grpo-seed4", "short-seed4"]
    assert [cell.config.trainer.steps for cell in cells] == [26, 5, 26, 5]
    assert {cell.config.trainer.kl for cell in cells} == {0.2}
    assert [cell.config.run.seed for cell in cells] == [3, 3, 4, 4]
    assert cells[1].folder == tmp_path / "out" / "short-seed3"
    assert cells[1].arguments[:4] == ("--config", "configs/demo.yaml", "trainer.kl=0.2", "trainer.steps=5")


def test_every_arm_meets_every_value_of_an_axis(tmp_path: Path) -> None:
    axes = {"trainer.loss_type": ["grpo", "dapo"], "trainer.kl": [0.1]}
    assert [arm.name for arm in load_grid(written(tmp_path, axes=axes)).arms] == [
        *("grpo-grpo-kl0.1", "grpo-dapo-kl0.1", "short-grpo-kl0.1", "short-dapo-kl0.1")
    ]
    alone = load_grid(written(tmp_path, arms=[], axes=axes)).arms
    assert [(arm.name, arm.keys) for arm in alone] == [
        ("grpo-kl0.1", {"trainer.loss_type": "grpo", "trainer.kl": 0.1}),
        ("dapo-kl0.1", {"trainer.loss_type": "dapo", "trainer.kl": 0.1}),
    ]


def test_without_compare_every_arm_is_compared_with_the_first(tmp_path: Path) -> None:
    assert [(pair.arm, pair.other) for pair in load_grid(written(tmp_path)).compare or []] == [("short", "grpo")]


def test_the_kept_grid_reads_back_to_the_same(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, axes={"trainer.kl": [0.1, 1e-5]}), ["trainer.iterations=2"])
    (tmp_path / "kept.yaml").write_text(dump_grid(grid), encoding="utf-8")
    assert load_grid(tmp_path / "kept.yaml") == grid


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_a_value_reaches_the_run_as_it_stands_in_the_grid(value: Any) -> None:
    assert yaml.safe_load(_as_yaml(value)) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"seed": [1]}, "grid.yaml: seed: is not a known key; did you mean 'seeds'?"),
        ({"seeds": []}, "grid.yaml: seeds: List should have at least 1 item"),
        ({"seeds": [1, 1]}, "grid.yaml: seeds: one stands twice"),
        ({"arms": []}, "grid.yaml: arms: name at least one"),
        ({"arms": [{"nam": "x", "name": "x"}]}, "grid.yaml: arms.0.nam: is not a known key; did you mean 'name'?"),
        ({"arms": [{"trainer.kl": 1}]}, "grid.yaml: arms.0.name: is missing; add it"),
        ({"arms": [*ARMS, ARMS[0]]}, "grid.yaml: arms: 'grpo' is the name of two"),
        ({"arms": [{"name": "a b"}]}, "grid.yaml: arms.0.name: String should match pattern"),
        ({"arms": [{"name": "a", "run.seed": 2}]}, "arms.0.run.seed: the sweep names folders and seeds itself"),
        ({"axes": {"trainer.steps": [1]}}, "arms.1.trainer.steps: is an axis, too"),
        ({"axes": {"kl": [1]}}, "axes.kl: must be a dotted key"),
        ({"axes": {"trainer.report_to": [["wandb"]]}}, "axes: a value can't stand in the name of a folder"),
        (
            {"compare": [{"arm": "shrt", "with": "grpo"}]},
            "compare.0.arm: there is no arm 'shrt'; did you mean 'short'?",
        ),
        ({"compare": [{"arm": "grpo", "with": "grpo"}]}, "compare.0: compares 'grpo' with itself"),
        ({"compare": [{"arm": "grpo", "wiht": "short"}]}, "compare.0.wiht: is not a known key; did you mean 'with'?"),
        ({"arms": [{"name": "a", "trainer.stps": 2}]}, "arm a: trainer.stps: is not a known key; did you mean"),
        (
            {"arms": [{"name": "a", "trainer.minibatches": 3}]},
            "grid.yaml: arm a: defaults: trainer.micro_batch: 32 dialogues",
        ),
        ({"arms": [{"name": "a", "trainer.cards_per_step": 800}]}, "grid.yaml: arm a: cards.train_split: 'train' has"),
        ({"arms": [*ARMS, {"name": "e", "evaluation.seeds_per_card": 9}]}, "arm e: is evaluated on other cards, seeds"),
        ({"base": "no.yaml"}, "no.yaml: there is no such file"),
    ],
)
def test_a_mistake_in_a_grid_is_told_with_its_place_and_remedy(tmp_path: Path, data: Any, said: str) -> None:
    assert said in refused(tmp_path, **data)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.steps=2", "command line: trainer.steps: is what arm short sets"),
        ("trainer={}", "command line: trainer: is what arm short sets"),
        ("run.name=x", "command line: run.name: the sweep names folders and seeds itself"),
        ("trainer", "command line: 'trainer' is not of the form"),
    ],
)
def test_the_command_line_sets_what_arms_share_and_no_more(tmp_path: Path, override: str, said: str) -> None:
    assert said in refused(tmp_path, (override,))


def test_every_mistake_of_every_arm_is_told_once(tmp_path: Path) -> None:
    arms = [{"name": "a", "trainer.stps": 2}, {"name": "b", "trainer.kl": -1}]
    lines = refused(tmp_path, seeds=[0, 1, 2], arms=arms).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["arm a", "arm b"]


def test_the_shipped_sweep_gives_turn_credit_at_most_sixty_percent_of_the_dialogues() -> None:
    grid = load_grid(SHIPPED)
    cells = cells_of(grid, SHIPPED, Path("runs/sweep"))
    steps = {cell.arm: cell.config.trainer.steps for cell in cells}
    assert (len(cells), list(steps)) == (15, ["grpo", "ppo", "grpo-turn", "grpo-turn-half", "ppo-turn"])
    assert [(cell.config.trainer.algorithm, cell.config.trainer.credit) for cell in cells[:5]] == [
        *(("grpo", "terminal"), ("ppo", "terminal"), ("grpo", "turn"), ("grpo", "turn"), ("ppo", "turn"))
    ]
    assert all(steps[arm] / steps[arm.split("-")[0]] <= 0.6 for arm in steps if "turn" in arm)
    check_cells(cells, SHIPPED, 1)


@pytest.mark.parametrize("text", ["", "- a", "grpo"])
def test_a_file_without_keys_is_no_grid(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="is no grid: it has no keys; name seeds and arms"):
        load_grid(tmp_path / "grid.yaml")
