from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import setup_env
from scripts.setup_env import (
    SetupError,
    check_place,
    choose_extra,
    fingerprint,
    override_lines,
    package_routes,
    pinned_torch,
    pinned_version,
    read_stamp,
    torch_routes,
    why_stale,
)

ROOT = Path(__file__).resolve().parents[2]
UV = ["py", "-m", "uv"]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CONSTRAINTS = {name: (ROOT / f"constraints/{name}.txt").read_text(encoding="utf-8") for name in ("cpu", "cuda")}


def names(routes: list[setup_env.Route]) -> list[str]:
    return [route.name for route in routes]


def test_without_a_gpu_a_local_torch_is_tried_first_and_the_plain_index_last() -> None:
    assert names(torch_routes("torch==1", False, "py", UV)) == ["a local build", "PyTorch's own index", "pip's index"]


def test_with_a_gpu_a_local_torch_is_the_last_resort() -> None:
    assert names(torch_routes("torch==1", True, "py", UV)) == ["PyTorch's own index", "pip's index", "a local build"]


def test_without_uv_pip_does_it_alone() -> None:
    assert names(torch_routes("torch==1", False, "py", None)) == ["a local build", "pip's index"]
    assert names(package_routes("cpu", "py", None, Path("o"))) == ["pip"]


def test_a_local_build_is_looked_for_without_any_index() -> None:
    [command] = torch_routes("torch==1", False, "py", None)[0].commands
    assert {"--no-index", "--no-deps", "torch==1"} <= set(command)


def test_the_index_that_fits_the_machine_is_probed_before_anything_large_is_fetched() -> None:
    probe, install = torch_routes("torch==1", False, "py", UV)[1].commands
    assert "--dry-run" in probe
    assert [part for part in probe if part != "--dry-run"] == install
    assert setup_env.installer_environment(probe=True)["UV_HTTP_RETRIES"] == "0"


@pytest.mark.parametrize(
    ("gpu", "cuda", "extra"),
    [(True, "13.0", "cuda"), (True, None, "cpu"), (False, "13.0", "cpu"), (False, None, "cpu")],
)
def test_the_cuda_vllm_needs_both_the_gpu_and_a_torch_for_it(gpu: bool, cuda: str | None, extra: str) -> None:
    assert choose_extra(gpu, cuda) == extra


@pytest.mark.parametrize(
    ("line", "cuda"),
    [("cuda: Optional[str] = None", None), ("cuda: Optional[str] = '13.0'", "13.0"), ("cuda = '12.8'", "12.8")],
)
def test_the_cuda_version_of_an_installed_torch_is_read_from_its_file(
    tmp_path: Path, line: str, cuda: str | None
) -> None:
    assert setup_env.torch_cuda(tmp_path) is None
    version = tmp_path / "lib/python3.11/site-packages/torch/version.py"
    version.parent.mkdir(parents=True)
    version.write_text(f"__version__ = '2.13.0'\ndebug = False\n{line}\nhip = None\n", encoding="utf-8")
    assert setup_env.torch_cuda(tmp_path) == cuda


def test_each_vllm_comes_with_its_own_constraints() -> None:
    for extra in ("cpu", "cuda"):
        for route in package_routes(extra, "py", UV, Path("overrides")):
            assert f"constraints/{extra}.txt" in route.commands[0]
            assert f".[{extra},dev]" in route.commands[0]
    assert ".[dev]" in package_routes(None, "py", UV, Path("overrides"))[0].commands[0]


def test_what_breaks_a_cpu_torch_is_kept_away_by_uv_and_removed_after_pip() -> None:
    uv, pip = package_routes("cpu", "py", UV, Path("overrides"))
    assert uv.commands[0][uv.commands[0].index("--override") + 1] == "overrides"
    assert pip.commands[1][-3:] == ["torchvision", "torchaudio", "torchcodec"]
    assert override_lines("torch==1").splitlines()[1] == 'torchvision; sys_platform == "never"'


def test_on_a_gpu_they_are_needed_and_stay() -> None:
    uv, pip = package_routes("cuda", "py", UV, Path("overrides"))
    assert "--override" not in uv.commands[0]
    assert len(pip.commands) == 1


def test_a_finished_environment_stands_until_something_it_follows_from_changes() -> None:
    wanted = {"pyproject.toml": "a", "python": "3.11.7", "gpu": "False"}
    assert why_stale(None, wanted) == "there is no finished one"
    assert why_stale(dict(wanted), wanted) is None
    assert why_stale({**wanted, "python": "3.12.1", "gpu": "True"}, wanted) == "python, gpu changed"


def test_the_fingerprint_follows_every_input(tmp_path: Path) -> None:
    for name in setup_env.INPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    before = fingerprint(False, tmp_path)
    for name in setup_env.INPUTS:
        (tmp_path / name).write_text("y", encoding="utf-8")
        assert fingerprint(False, tmp_path)[name] != before[name]
    assert fingerprint(True, tmp_path)["gpu"] != before["gpu"]


def test_an_interrupted_set_up_leaves_no_stamp_and_a_torn_one_counts_as_none(tmp_path: Path) -> None:
    assert read_stamp(tmp_path) is None
    (tmp_path / setup_env.STAMP).write_text('{"python": ', encoding="utf-8")
    assert read_stamp(tmp_path) is None
    (tmp_path / setup_env.STAMP).write_text(json.dumps({"python": "3"}), encoding="utf-8")
    assert read_stamp(tmp_path) is None, "the interpreter is gone"
    python = setup_env.python_of(tmp_path)
    python.parent.mkdir()
    python.touch()
    assert read_stamp(tmp_path) == {"python": "3"}


def test_an_environment_that_someone_else_made_is_left_alone(tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    with pytest.raises(SetupError, match="was not made by this set-up; move it away"):
        check_place(venv, gpu=False)
    (venv / setup_env.LOG).touch()
    check_place(venv, gpu=False)


def test_a_disk_that_is_too_small_is_told_before_anything_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(setup_env.NEEDED_GIB, False, 10**9)
    with pytest.raises(SetupError, match="GiB of free disk; about 1000000000 are needed"):
        check_place(tmp_path / ".venv", gpu=False)


def test_a_python_that_is_too_old_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_env.sys, "version_info", (3, 10, 4))
    assert setup_env.main() == 2
    assert "attune needs Python 3.11 or newer" in capsys.readouterr().out


def test_a_failing_route_gives_way_and_the_last_failure_shows_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    fails = setup_env.Route("first", [[sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]])
    works = setup_env.Route("second", [[sys.executable, "-c", ""]])
    with (tmp_path / setup_env.LOG).open("w", encoding="utf-8") as log:
        setup_env.step(log, "thing", [fails, works])
        said = re.sub(r"\d+\.\d", "0", capsys.readouterr().out)
        assert said == "  thing: first failed (0 s)\n  thing: second (0 s)\n"
        with pytest.raises(SetupError, match="thing: no way worked"):
            setup_env.step(log, "thing", [fails])
    setup_env.show_log_end()
    assert "the reason" in capsys.readouterr().err


def test_torch_and_the_binding_packages_are_pinned_exactly() -> None:
    project = tomllib.loads(PYPROJECT)["project"]
    assert pinned_torch(PYPROJECT) == "torch==2.13.0"
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    assert [line for line in [*project["dependencies"], *extras] if not re.match(r"[\w-]+==[\w.]+(;|$)", line)] == []
    with pytest.raises(SetupError, match="no exact pin of torch"):
        pinned_torch('dependencies = ["torch>=2"]')


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_the_constraints_agree_with_the_pins(extra: str) -> None:
    """Every pin of pyproject.toml but torch, whose builds differ by machine, stands in the constraints too."""
    project = tomllib.loads(PYPROJECT)["project"]
    pins = [
        *project["dependencies"],
        *project["optional-dependencies"][extra],
        *project["optional-dependencies"]["dev"],
    ]
    locked = {
        line.lower().replace("_", "-") for line in CONSTRAINTS[extra].splitlines() if "==" in line and line[0] != "#"
    }
    wanted = {pin.split(";")[0] for pin in pins if not pin.startswith("torch==")}
    assert wanted - locked == set()
    assert not any(line.startswith("torch==") for line in locked)


def test_the_installers_are_pinned() -> None:
    assert pinned_version("uv", CONSTRAINTS["cpu"]).startswith("uv==")
    assert pinned_version("deepspeed", CONSTRAINTS["cpu"]) == "deepspeed==0.19.8"
    with pytest.raises(SetupError, match="no pin of nothing"):
        pinned_version("nothing", CONSTRAINTS["cpu"])


def test_the_set_up_uses_the_standard_library_alone() -> None:
    code = "import sys; sys.path.insert(0, 'scripts'); import setup_env"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT).returncode == 0


def test_ci_starts_from_nothing_and_ends_with_the_tests() -> None:
    lines = [
        line
        for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "set -euo pipefail"
    assert lines[-5:] == ["rm -rf .venv", "make lint", "make demo", "make test-ranks", "make test"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
