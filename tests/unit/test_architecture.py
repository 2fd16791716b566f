"""The house: four floors, imports go down only, nothing heavy below, and the limits of style."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {"envs": 1, "rewards": 2, "trainers": 3, "scripts": 4}
HEAVY = ("torch", "transformers", "trl", "vllm")
LIGHT_TRAINERS = ("trainers.config", "trainers.config_file", "trainers.memory")
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400


@cache
def sources() -> dict[Path, ast.Module]:
    """The parsed files of all floors, by path relative to the root."""
    files = (path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py")))
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def upward(path: Path, tree: ast.AST) -> list[str]:
    here = FLOORS[path.parts[0]]
    return [f"{path}:{line} imports {name}" for line, name in imports(tree) if FLOORS.get(name.split(".")[0], 0) > here]


def test_the_check_sees_an_import_upwards() -> None:
    tree = ast.parse("def f():\n    from trainers.config import RunConfig\nimport envs.cards\n")
    assert upward(Path("rewards/x.py"), tree) == ["rewards/x.py:2 imports trainers.config"]


def test_imports_go_down_only() -> None:
    assert len(sources()) > 10
    assert [found for path, tree in sources().items() for found in upward(path, tree)] == []


def test_no_import_is_relative() -> None:
    relative = [
        f"{path}:{node.lineno}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_the_lower_floors_and_the_config_load_nothing_heavy() -> None:
    modules = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path in sources()
        if path.parts[0] in ("envs", "rewards")
    ]
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {[*modules, *LIGHT_TRAINERS]}]; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("floor", [floor for floor in FLOORS if floor != "scripts"])
def test_nothing_is_printed_below_the_scripts(floor: str) -> None:
    printed = [
        f"{path}:{node.lineno}"
        for path, tree in sources().items()
        if path.parts[0] == floor
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printed == []


def test_functions_are_at_most_60_lines() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_files_are_at_most_400_lines() -> None:
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {str(path): length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_every_file_says_what_it_is() -> None:
    assert [str(path) for path, tree in sources().items() if tree.body and not ast.get_docstring(tree)] == []


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    holders = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
    for holder in holders:
        for node in holder.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                yield node


def test_public_functions_are_fully_typed() -> None:
    untyped = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in sources().items()
        for node in public_functions(tree)
        if node.returns is None
        or any(
            argument.annotation is None
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if argument.arg not in ("self", "cls")
        )
    ]
    assert untyped == []


def test_no_except_is_bare() -> None:
    bare = [
        f"{path}:{node.lineno}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


def test_every_zip_is_strict() -> None:
    loose = [
        f"{path}:{node.lineno}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip"
        and not any(keyword.arg == "strict" for keyword in node.keywords)
    ]  # fmt: skip
    assert loose == []


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {requirement.split("==")[0].replace("-", "_") for requirement in project["dependencies"]}
    declared = (declared - {"pyyaml"}) | {"yaml"}
    names = {name.split(".")[0] for tree in sources().values() for _, name in imports(tree)}
    used = {name for name in names if name not in sys.stdlib_module_names and name not in FLOORS}
    assert used - declared == set()
    assert declared - used == set()
