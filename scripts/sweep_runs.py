"""Runs a sweep's cells, each in a process of its own, so that its memory and its engines end with it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from envs.errors import InputError
from scripts.commands.train import check_inputs
from trainers.config_file import dump_config
from trainers.manifest import unwritable, write_whole
from trainers.run_files import CHECKPOINTS, COMPLETE
from trainers.run_folder import CODE, is_finished
from trainers.sweep import GRID, Cell, Grid, dump_grid
from trainers.sweep_report import COMMAND, log_of, problem_of

Tell = Callable[[str], None]
TRAIN = (sys.executable, "-m", "scripts.attune", "train")


def check_cells(cells: Sequence[Cell], where: Path, jobs: int) -> None:
    """Make every arm's plan, as ``attune train`` does before it starts. Raises InputError with all that can't work."""
    problems, evaluated = [], {}
    for arm, config in {cell.arm: cell.config for cell in cells}.items():
        try:
            plan = check_inputs(config)
        except InputError as error:
            problems += [f"{where}: arm {arm}: {line}" for line in str(error).splitlines()]
            continue
        if len(config.devices.training) > 1:
            problems.append(f"{where}: arm {arm}: devices.training: several need a launcher; sweep over one GPU each")
        if jobs > 1 and config.engine.port:
            problems.append(f"{where}: arm {arm}: engine.port: two runs at once can't share it; remove it")
        cards = tuple(card.hash for card in plan.held_out_cards)
        evaluated[arm] = (cards, plan.held_out_spec.hash, config.evaluation.seeds_per_card)
    if len(set(evaluated.values())) > 1:
        first, *others = evaluated
        odd = next(arm for arm in others if evaluated[arm] != evaluated[first])
        problems.append(
            f"{where}: arm {odd}: is evaluated on other cards, seeds or client rules than {first}, so they can't be "
            "compared; set evaluation and cards in the base alone"
        )
    if problems:
        raise InputError("\n".join(problems))


def take_folder(out: Path, grid: Grid, cells: Sequence[Cell], resume: bool) -> None:
    """Make the sweep's folder, with its grid. Raises InputError where another sweep, or another config, lies there."""
    text, path = dump_grid(grid), out / GRID
    if path.exists() and not resume:
        raise InputError(f"{out}: holds a sweep already; go on with it (--resume), or name another folder")
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise InputError(f"{path}: is not what this sweep would be; resume with the same grid, or name another folder")
    for cell in cells:
        config = cell.folder / "config.yaml"
        if config.exists() and config.read_text(encoding="utf-8") != dump_config(cell.config):
            raise InputError(f"{config}: is not what the grid says; remove {cell.folder}, or name another folder")
    write_whole(path, text)


def run_cells(cells: Sequence[Cell], out: Path, jobs: int, tell: Tell) -> list[str]:
    """Run what is not finished, ``jobs`` at once; returns the names of the cells that failed.

    One that fails leaves the others alone. When this process is interrupted the runs that go on are ended, and can be
    resumed.
    """
    runner = _Runner(out, jobs, tell, total=len(cells))
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        statuses = list(pool.map(runner.run, range(len(cells)), cells))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        runner.stop()
        raise
    pool.shutdown()
    return [cell.name for cell, done in zip(cells, statuses, strict=True) if not done]


def start_options(folder: Path) -> list[str]:
    """How ``attune train`` takes a folder: resume from a whole checkpoint, else replace what lies there."""
    if not (folder / "provenance.json").exists():
        return []
    whole = not is_finished(folder) and any((folder / CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE}"))
    return ["--resume"] if whole else ["--overwrite"]


class _Runner:
    """The processes of a sweep."""

    def __init__(self, out: Path, jobs: int, tell: Tell, total: int) -> None:
        self._out, self._tell, self._total = out, tell, total
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._stopped = threading.Lock(), False
        self._environment = _environment(jobs)

    def run(self, place: int, cell: Cell) -> bool:
        """Run one cell; whether it is finished."""
        log, label = log_of(self._out, cell.name), f"[{place + 1}/{self._total}] {cell.name}"
        if problem_of(cell.folder, log) is None:
            self._tell(f"{label}: finished already")
            return True
        options = start_options(cell.folder)
        self._tell(f"{label}: {'resuming' if options == ['--resume'] else 'starting'} (log: {log})")
        status = self._train([*cell.arguments, *options], log, cell.name)
        problem = problem_of(cell.folder, log)
        if problem:
            self._tell(f"{label}: failed with status {status}: {problem}")
        return problem is None

    def stop(self) -> None:
        """End what runs, and start nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _train(self, arguments: Sequence[str], log: Path, name: str) -> int:
        """``attune train`` in a process of its own; what it says goes to the log and is told."""
        try:
            file = log.open("a", encoding="utf-8")
        except OSError as error:
            raise unwritable(log, error) from error
        with file:
            file.write(f"{COMMAND}attune train {shlex.join(arguments)}\n")
            file.flush()
            with self._lock:
                if self._stopped:
                    return -1
                # The pipe also ends a run whose sweep was killed: its next line finds no reader.
                process = subprocess.Popen(
                    [*TRAIN, *arguments], env=self._environment, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
                )  # fmt: skip
                self._running.add(process)
            assert process.stdout
            for line in process.stdout:
                file.write(line)
                file.flush()
                self._tell(f"{name} | {line.rstrip()}")
            status = process.wait()
            with self._lock:
                self._running.discard(process)
            return status


def _environment(jobs: int) -> dict[str, str]:
    """This process's, with this code first on the path, and the cores shared out between the jobs."""
    paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
    changed = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if jobs > 1:
        changed["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    return {**os.environ, **changed}
