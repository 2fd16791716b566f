"""A sweep's grid: arms that differ in keys, seeds for each, and which arms are compared; every cell's checked config.

A cell is one run of ``attune train``: an arm with a seed, in a folder of its own. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from envs.errors import InputError
from trainers.client_config import Section, Share
from trainers.config import RunConfig
from trainers.config_file import COMMAND_LINE, load_config, parse_override

GRID = "grid.yaml"  # what a sweep's folder keeps of its grid
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Arm(Section):
    """One setting that is tried. In a file its keys stand beside the name: ``{name: ppo, trainer.algorithm: ppo}``."""

    name: Annotated[str, Field(pattern=NAME)] = Field(description="Name of the arm, and of its runs' folders.")
    keys: dict[str, Any] = Field(default={}, description="What differs from the base, by dotted key.")

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        plain = {key: value for key, value in data.items() if key == "keys" or "." not in str(key)}
        return plain | {"keys": {**(data.get("keys") or {}), **{k: v for k, v in data.items() if k not in plain}}}


class Pair(Section):
    """Two arms to compare."""

    arm: str = Field(description="The arm that is looked at.")
    other: str = Field(alias="with", description="The arm that it is compared with.")
    within: Share = Field(default=0.6, description="Share of the other's dialogues in which it is asked to get there.")


class Grid(Section):
    """A sweep: ``arms``, each also with every value of ``axes`` where there are any, times ``seeds``, over ``base``."""

    base: Path | None = Field(default=None, description="A run's configuration; none: the defaults.")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="Seeds of the runs of each arm.")
    arms: list[Arm] = Field(default=[], description="What is compared.")
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={}, description="Values by dotted key; every arm is run with every one."
    )
    compare: list[Pair] | None = Field(default=None, description="Which arms; none: every arm with the first.")

    @model_validator(mode="after")
    def _combines(self) -> Grid:
        problems = [*_key_problems(self), *_arm_problems(self)]
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds: one stands twice; name each once")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def crossed(self) -> list[Arm]:
        """The arms with the axes multiplied out."""
        arms = []
        for arm, values in product(self.arms or [None], product(*self.axes.values())):
            chosen = dict(zip(self.axes, values, strict=True))
            parts = [arm.name] if arm else []
            parts += [value if isinstance(value, str) else f"{_last(key)}{value}" for key, value in chosen.items()]
            arms.append(Arm(name="-".join(parts), keys={**(arm.keys if arm else {}), **chosen}))
        return arms


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. ``arguments``: what ``attune train`` is given; ``config``: what that resolves to."""

    arm: str
    seed: int
    arguments: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return cell_name(self.arm, self.seed)

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.config.run.folder


def cell_name(arm: str, seed: int) -> str:
    """The name of an arm's run with a seed."""
    return f"{arm}-seed{seed}"


def load_grid(path: Path, overrides: Sequence[str] = ()) -> Grid:
    """The grid of a file, checked and multiplied out. ``overrides``: "a.b=c" for every arm.

    Raises InputError naming file, key and remedy; a key that an arm sets itself can't be overridden.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise InputError(
                f"{path}: is no grid: it has no keys; name seeds and arms, as configs/sweeps/demo.yaml does"
            )
        grid = Grid.model_validate(data)
        arms = grid.crossed()
    except FileNotFoundError:
        known = ", ".join(str(file) for file in sorted(Path("configs/sweeps").glob("*.yaml")))
        raise InputError(f"{path}: there is no such file" + (f"; grids here: {known}" if known else "")) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't be read as YAML: {error}") from error
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in _described(error))) from error
    given = dict(parse_override(override) for override in overrides)
    if problems := _override_problems(given, arms):
        raise InputError("\n".join(f"{COMMAND_LINE}: {problem}" for problem in problems))
    arms = [Arm(name=arm.name, keys={**given, **arm.keys}) for arm in arms]
    pairs = [pair.model_dump(by_alias=True) for pair in grid.compare or []]
    if grid.compare is None:
        pairs = [{"arm": arm.name, "with": arms[0].name} for arm in arms[1:]]
    return Grid.model_validate(
        {"base": grid.base, "seeds": grid.seeds, "arms": [_flat(arm) for arm in arms], "compare": pairs}
    )


def dump_grid(grid: Grid) -> str:
    """The grid as YAML, which ``load_grid`` reads back to the same."""
    data = grid.model_dump(mode="json", by_alias=True, exclude={"arms", "axes"})
    return yaml.safe_dump(data | {"arms": [_flat(arm) for arm in grid.arms]}, sort_keys=False)


def cells_of(grid: Grid, path: Path, out: Path) -> list[Cell]:
    """Every arm with every seed, seed by seed, so that an early end leaves whole comparisons.

    ``path`` is the grid's, for messages. Raises InputError with every problem of every arm.
    """
    load_config(grid.base)  # a mistake in the base is told once, and not for every arm
    cells, problems = [], []
    for seed, arm in product(grid.seeds, grid.arms):
        set_by_us = [f"run.seed={seed}", f"run.name={cell_name(arm.name, seed)}", f"run.dir={out}"]
        overrides = [*(f"{key}={_as_yaml(value)}" for key, value in arm.keys.items()), *set_by_us]
        try:
            config = load_config(grid.base, overrides)
        except InputError as error:
            where = f"{path}: arm {arm.name}"
            problems += [f"{where}: {line.removeprefix(f'{COMMAND_LINE}: ')}" for line in str(error).splitlines()]
            continue
        named = ("--config", str(grid.base)) if grid.base else ()
        cells.append(Cell(arm.name, seed, (*named, *overrides), config))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return cells


def _flat(arm: Arm) -> dict[str, Any]:
    return {"name": arm.name, **arm.keys}


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))  # escaped: a bare U+0085 is lost
    return text.removesuffix("\n").removesuffix("\n...")


def _key_problems(grid: Grid) -> Iterator[str]:
    places = [(f"axes.{key}", key) for key in grid.axes]
    places += [(f"arms.{number}.{key}", key) for number, arm in enumerate(grid.arms) for key in arm.keys]
    for place, key in places:
        if key.split(".")[0] == "run":
            yield f"{place}: the sweep names folders and seeds itself; remove it (seeds stand under seeds)"
        if "." not in key:
            yield f"{place}: must be a dotted key of a run's configuration, such as trainer.algorithm"
    for number, arm in enumerate(grid.arms):
        for key in sorted(arm.keys.keys() & grid.axes.keys()):
            yield f"arms.{number}.{key}: is an axis, too; keep it in one of them"


def _arm_problems(grid: Grid) -> Iterator[str]:
    if not grid.arms and not grid.axes:
        yield "arms: name at least one, such as {name: grpo, trainer.algorithm: grpo}"
        return
    try:
        names = [arm.name for arm in grid.crossed()]
    except ValidationError:
        yield "axes: a value can't stand in the name of a folder; write these as arms, with names of their own"
        return
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"arms: {name!r} is the name of two; give each its own"
    for number, pair in enumerate(grid.compare or []):
        for key, name in (("arm", pair.arm), ("with", pair.other)):
            if name not in names:
                close = get_close_matches(name, names, n=1)
                remedy = f"did you mean {close[0]!r}?" if close else f"arms here: {', '.join(names)}"
                yield f"compare.{number}.{key}: there is no arm {name!r}; {remedy}"
        if pair.arm == pair.other:
            yield f"compare.{number}: compares {pair.arm!r} with itself; name another arm"


def _override_problems(given: dict[str, Any], arms: Sequence[Arm]) -> list[str]:
    problems = []
    for key in given:
        setter = next((arm.name for arm in arms for own in arm.keys if _touch(own, key)), None)
        if key.split(".")[0] == "run":
            problems.append(f"{key}: the sweep names folders and seeds itself; say --out, or edit the grid's seeds")
        elif setter:
            problems.append(f"{key}: is what arm {setter} sets, so that arms would become alike; edit the grid")
    return problems


def _touch(one: str, other: str) -> bool:
    """Whether one key is the other, or holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _described(error: ValidationError) -> Iterator[str]:
    """A line for each problem of a grid, with its key and the remedy."""
    models = {"arms": Arm, "compare": Pair}
    for problem in error.errors():
        loc = [str(part) for part in problem["loc"]]
        key, message = ".".join(loc) or "(whole file)", str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            fields = models.get(loc[0], Grid).model_fields if len(loc) > 1 else Grid.model_fields
            known = [field.alias or name for name, field in fields.items() if name != "keys"]
            close = get_close_matches(loc[-1], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            dotted = "; keys of a run are written with their dots, such as trainer.steps" if loc[0] == "arms" else ""
            yield f"{key}: is not a known key; {hint}{dotted}"
        elif problem["type"] == "missing":
            yield f"{key}: is missing; add it"
        elif problem["type"] == "value_error":
            yield from message.splitlines()
        else:
            yield f"{key}: {message} (given: {str(problem['input'])[:60]!r})"
