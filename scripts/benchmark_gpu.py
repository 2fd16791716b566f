"""A training step of a 7B-shaped policy on one GPU: tokens a second, share of what the card can do, memory at its peak.

    python scripts/benchmark_gpu.py --json

The weights are random and made on the card; the rows are random tokens in the shape of dialogues; the trainer is the
real one. Model FLOPs utilisation is FLOPs / (seconds x peak), where the FLOPs are those that the gradient needs,
recomputation left out (arXiv 2204.02311, for an adapter). With M numbers in the linear layers of all blocks, L in the
adapter, n layers, q = heads x head size, h hidden and v vocabulary, a row of P prompt and T tokens in all takes

    (4 M + 6 L) T + 6 n q T^2 + 4 h v (T - P)

forward and backward: frozen layers need no gradient of their weights, hence 4 and not 6; attention sees half of the
square; the head scores what follows the prompt. Without a GPU every number is null, and the exit status is 0.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from math import log
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from rich.table import Table

from scripts.console import JsonFlag, command_app, print_json, run_app, stderr, stdout
from trainers.config import BOOTSTRAP, RunConfig
from trainers.config_file import load_config
from trainers.memory import GIB, Architecture, architecture_of, estimate_memory
from trainers.samples import Sample

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "grpo_qwen2.5_7b.yaml"
PEAK = 990e12  # FLOP/s, dense bf16: the vendor's number for the H100 and H200 (SXM)
REPLY, ANSWER = 96, 32  # tokens of a reply and of the client's answer to it
MICRO_BATCHES = 2  # in an update
STEPS = 3  # the first one warms up
RANKS = (8, 32, 128)
ENGINE_PARTS = ("engine weights", "adapter slots", "engine runtime", "KV cache")

app = command_app("python scripts/benchmark_gpu.py --json")


@dataclass(frozen=True)
class Case:
    """One setting to measure. ``tokens``: of a row at full length; ``ragged``: rows from half of it to all of it."""

    rank: int
    micro_batch: int
    tokens: int
    checkpointing: bool
    ragged: bool = False
    full_logits: bool = False


CASES = (
    *(Case(rank, 4, tokens, again) for rank in RANKS for tokens in (1024, 2048) for again in (True, False)),
    Case(16, 2, 4096, True),  # the shipped configuration for one GPU
    Case(16, 4, 4096, True),  # and for eight
    *(Case(32, rows, 2048, True) for rows in (1, 2, 8, 16)),
    *(Case(32, rows, 2048, False) for rows in (1, 2)),
    *(Case(32, 4, 2048, again, ragged=True) for again in (True, False)),
    Case(32, 4, 2048, True, full_logits=True),
)
TINY_CASES = (Case(8, 2, 256, True), Case(8, 2, 256, False, ragged=True), Case(8, 2, 256, False, full_logits=True))


def gradient_flops(sizes: Architecture, rank: int, rows: Sequence[tuple[int, int]]) -> int:
    """FLOPs of forward and backward over ``rows`` of (prompt tokens, all tokens), an adapter on every linear layer."""
    frozen = sizes.layers * sum(inputs * outputs for inputs, outputs in sizes.linear_layers.values())
    a_token = 4 * frozen + 6 * sizes.adapter_parameters(rank, "all-linear")
    head = 4 * sizes.hidden * sizes.vocabulary
    return sum(a_token * all_ + 6 * sizes.layers * sizes.q * all_**2 + head * (all_ - prompt) for prompt, all_ in rows)


def dialogue_rows(vocabulary: int, tokens: int, rows: int, ragged: bool) -> list[Sample]:
    """Random rows of ``tokens`` tokens (ragged: evenly from half of them to all): an eighth prompt, then turns."""
    random, samples = Random(0), []
    for row in range(rows):
        length = tokens // 2 + (tokens - tokens // 2) * row // (rows - 1) if ragged else tokens
        prompt = length // 8
        mask = [0] * prompt + [int(place % (REPLY + ANSWER) < REPLY) for place in range(length - prompt)]
        ids = [random.randrange(1, vocabulary) for _ in range(length)]
        turns = tuple(ours - 1 for ours in mask)
        samples.append(Sample(tuple(ids), turns, tuple(-log(vocabulary) * ours for ours in mask), prompt))
    return samples


def case_config(case: Case, tiny: bool, on_gpu: bool) -> RunConfig:
    """The shipped configuration for one GPU, changed to the case's sizes and to one update a step."""
    changes = {
        "lora.rank": case.rank,
        "trainer.micro_batch": case.micro_batch,
        "policy.context_tokens": case.tokens,
        "policy.max_new_tokens": case.tokens // 4,
        "trainer.gradient_checkpointing": str(case.checkpointing).lower(),
        "trainer.steps": STEPS,
        "trainer.cards_per_step": 1,
        "trainer.dialogues_per_card": MICRO_BATCHES * case.micro_batch,
        "trainer.logprob_tolerance": 1e9,  # the rows were not sampled, so their likelihoods agree with nothing
        "devices.engine": "[]",
        "devices.training": "[0]" if on_gpu else "[]",
    }
    if tiny:
        changes |= {"policy.model": BOOTSTRAP, "policy.dtype": "bfloat16" if on_gpu else "float32"}
    return load_config(CONFIG, [f"{key}={value}" for key, value in changes.items()])


def measure(case: Case, tiny: bool) -> dict[str, Any]:
    """The numbers of one case. What failed is data: ``error`` says why, and the numbers are None."""
    from scripts.training_step import device, training_steps
    from trainers.assembly import train_settings

    config = case_config(case, tiny, device() == "cuda")
    sizes = architecture_of(config.policy.model)
    samples = dialogue_rows(sizes.vocabulary, case.tokens, MICRO_BATCHES * case.micro_batch, case.ragged)
    parts = estimate_memory(config, sizes)[0].parts
    rows = [(sample.prompt_length, len(sample.ids)) for sample in samples]
    found: dict[str, Any] = {
        **asdict(case),
        "row_tokens": sum(all_ for _, all_ in rows),
        "gradient_flops": gradient_flops(sizes, case.rank, rows),
        "estimate_bytes": {part: bytes_ for part, bytes_ in parts.items() if part not in ENGINE_PARTS},
        "error": None,
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            measured = training_steps(train_settings(config), sizes, samples, Path(folder), case.full_logits)
    except Exception as error:  # a case that doesn't fit must not cost the others
        return found | {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    seconds = measured["gradients_seconds"]
    return found | measured | {
        "tokens_per_second": found["row_tokens"] / seconds,
        "flops_per_second": found["gradient_flops"] / seconds,
    }  # fmt: skip


def run(tiny: bool, deadline: float, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure everything; cases that would begin after ``deadline`` (monotonic seconds) are left out by name.

    ``save`` sees the report as it grows.
    """
    from scripts.logprob_shapes import logprob_differences
    from scripts.training_step import device, device_facts, matmul_rate

    cases = TINY_CASES if tiny else CASES
    report: dict[str, Any] = {"device": device_facts(), "versions": _versions(), "peak_flops": PEAK, "skipped": []}
    if device() == "cpu" and not tiny:
        stderr.print("there is no GPU here: nothing was measured, and every number is null")
        return report | {"matmul_flops": None, "cases": [_empty(case) for case in cases], "logprobs": None}
    report["matmul_flops"] = {
        "8192 x 8192 x 8192": matmul_rate(8192, 8192, 8192),
        "8192 x 3584 x 18944": matmul_rate(8192, 3584, 18944),
    }
    report["cases"] = []
    for case in cases:
        if time.monotonic() > deadline:
            report["skipped"].append(asdict(case))
            continue
        report["cases"].append(measure(case, tiny))
        save(report)
        stderr.print(f"{time.monotonic():.0f} {case}: {_short(report['cases'][-1])}", markup=False, soft_wrap=True)
    sizes = replace(architecture_of(case_config(cases[0], tiny, device() == "cuda").policy.model), tied=False)
    rows, tokens, decoded = (2, 128, 16) if tiny else (16, 1024, 128)
    report["logprobs"] = logprob_differences(sizes, rows, tokens, decoded)
    save(report)
    return report


def _empty(case: Case) -> dict[str, Any]:
    return asdict(case) | {"error": "no GPU", "tokens_per_second": None, "gradients_peak_bytes": None}


def _short(found: dict[str, Any]) -> str:
    if found["error"]:
        return found["error"]
    peak = found.get("gradients_peak_bytes")
    return f"{found['tokens_per_second']:.0f} tokens/s, peak {NOTHING if peak is None else f'{peak / GIB:.1f} GiB'}"


NOTHING = "-"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")}


def _table(report: dict[str, Any]) -> Table:
    """One line for each case; GiB, and shares of the nominal and of the measured peak."""
    table = Table(title="training step", title_justify="left")
    for heading in ("rank", "rows x tokens", "recompute", "tokens/s", "MFU", "of matmul", "peak", "estimate"):
        table.add_column(heading, justify="right")
    matmul = (report["matmul_flops"] or {}).get("8192 x 8192 x 8192")
    for found in report["cases"]:
        rate, peak = found.get("flops_per_second"), found.get("gradients_peak_bytes")
        marks = " ragged" * found["ragged"] + " full logits" * found["full_logits"]
        table.add_row(
            str(found["rank"]),
            f"{found['micro_batch']} x {found['tokens']}{marks}",
            "yes" if found["checkpointing"] else "no",
            NOTHING if rate is None else f"{found['tokens_per_second']:.0f}",
            NOTHING if rate is None else f"{rate / report['peak_flops']:.1%}",
            NOTHING if rate is None or matmul is None else f"{rate / matmul:.1%}",
            NOTHING if peak is None else f"{peak / GIB:.2f}",
            f"{sum(found.get('estimate_bytes', {}).values()) / GIB:.2f}",
        )
    return table


@app.command()
def benchmark(
    as_json: JsonFlag = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="A small model, also without a GPU: checks the way.")] = False,
    seconds: Annotated[float, typer.Option(help="Begin no further case after so many seconds.")] = 480,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON object to this file.")] = None,
) -> None:
    """Measure training steps on one GPU."""

    def save(report: dict[str, Any]) -> None:
        if out:
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    report = run(tiny, time.monotonic() + seconds, save)
    if as_json:
        print_json(report)
    else:
        stdout().print(_table(report))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run_app(app, arguments, "benchmark_gpu.py")


if __name__ == "__main__":
    raise SystemExit(main())
