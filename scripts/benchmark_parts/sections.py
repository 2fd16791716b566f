"""The sections of the benchmark that need the policy's server: variants side by side, a stream, scaling, a publish."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from envs.cards import PersonaCard
from scripts.benchmark_parts.engine import start
from scripts.benchmark_parts.variants import Bench, play_lock_step, play_ours, play_stream
from scripts.benchmark_parts.verifiers_path import PROGRAM, VERSIONS, Verifiers, ensure_environment
from scripts.benchmark_parts.work import LogNormal, Played, Talk, talks
from trainers.assembly import CACHE, cards_of, chat_templates, policy_dir, policy_server_settings
from trainers.chat_template import read_prompt
from trainers.config import RunConfig

TURNS = 4
TOKENS = 24  # of every reply
LATENCY = LogNormal.of(mean=0.2, p99=1.0)
STREAM, STREAM_IN_FLIGHT = 256, 64  # dialogues of the stream, and how many of them at once
RANK = 16
Variant = Callable[[Sequence[Talk]], Played]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """A started server with all that plays against it."""

    bench: Bench
    cards: Sequence[PersonaCard]
    variants: dict[str, Variant]
    model_dir: Path
    folder: Path

    def talks(self, count: int, round_: int, latency: bool) -> list[Talk]:
        """The work of one round, the same for every variant."""
        return talks(self.cards, count, TURNS, LATENCY if latency else None, seed=round_)


@contextmanager
def setting(config: RunConfig, device: str, others: Sequence[str], tell: Tell) -> Iterator[Setting]:
    """Start the server and each variant of ``others`` that is asked for by name; ours and lock-step are always there.

    ``others``: of trl and verifiers. Raises what starting a server raises, and RunError when verifiers can't be had.
    """
    model_dir = policy_dir(config, tell)
    cards = cards_of(config, config.cards.train_split)
    template = chat_templates(config, model_dir, cards)["en"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = replace(policy_server_settings(config, model_dir, folder / "vllm.log"), device=device)
        tell("starting the policy server")
        server = stack.enter_context(start(settings))
        runner = stack.enter_context(asyncio.Runner())
        bench = Bench(server, template, read_prompt("en", config.policy.system_prompt), TOKENS, runner)
        variants: dict[str, Variant] = {
            "ours": lambda work: play_ours(bench, work),
            "lock-step": lambda work: play_lock_step(bench, work),
            "lock-step, clients together": lambda work: play_lock_step(bench, work, together=True),
        }
        if "trl" in others:
            from scripts.benchmark_parts.trl_path import play_trl

            variants["TRL"] = lambda work: play_trl(bench, work, str(model_dir))
        if "verifiers" in others:
            log = folder / "verifiers.log"
            for release in VERSIONS:
                python = ensure_environment(release, CACHE / f"verifiers-{release}", log)
                verifiers = stack.enter_context(Verifiers([python, PROGRAM], log, tell))
                variants[f"verifiers {release}"] = partial(verifiers.play, bench)
        made = Setting(bench, cards, variants, model_dir, folder)
        for variant in variants.values():  # each meets its first imports and connections
            variant(made.talks(8, -1, latency=False))
        yield made


def side_by_side(made: Setting, sizes: Sequence[int], rounds: int, tell: Tell) -> list[dict[str, Any]]:
    """Every variant on the same talks, in turn, ``rounds`` times; first without waiting, then with it.

    Each round begins with another variant, so that none always follows the same one.
    """
    found = []
    for round_ in range(rounds):
        for size in sizes:
            for latency in (False, True):
                work = made.talks(size, round_, latency)
                names = list(made.variants)
                for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                    variant = made.variants[name]
                    played = variant(work)
                    tell(f"round {round_ + 1}, {size} dialogues, {_told(latency)}: {name} {_rate(played)}")
                    found.append({"variant": name, "size": size, "latency": latency, "round": round_, **asdict(played)})
    return found


def stream(made: Setting, rounds: int, tell: Tell) -> list[dict[str, Any]]:
    """A steady stream of ours with so many in flight, without and with waiting, in turn."""
    found = []
    for round_ in range(rounds):
        for latency in (False, True):
            played = play_stream(made.bench, made.talks(STREAM, round_, latency), STREAM_IN_FLIGHT)
            rate = (played["turns"] or 0) / (played["seconds"] or 1)
            tell(f"stream, round {round_ + 1}, {_told(latency)}: {rate:.1f} turns/s")
            found.append({"latency": latency, "round": round_, **played})
    return found


def scaling(made: Setting, in_flight: Sequence[int], tell: Tell) -> list[dict[str, Any]]:
    """Ours with more and more dialogues in flight, all waiting for their clients."""
    found = []
    for count in in_flight:
        played = play_ours(made.bench, made.talks(max(4, 2 * count), 0, latency=True), count)
        tell(f"{count} in flight: {_rate(played)}")
        found.append({"in_flight": count, **asdict(played)})
    return found


def after_publish(made: Setting, size: int, rounds: int, tell: Tell) -> list[dict[str, Any]]:
    """Ours under an adapter that was published a moment before, so that its part of the prefix cache is empty.

    The second pass of a round plays the same talks again under the same adapter; only the clients' times differ.
    """
    found = []
    for round_ in range(rounds):
        path = write_random_adapter(made.model_dir, made.folder / "adapters" / f"v{round_}", seed=round_)
        name = made.bench.server.publish(path)
        for again in (False, True):
            work = made.talks(size, 2 * round_ + again, latency=True)
            played = play_ours(made.bench, work, adapter=name, cold=False)
            tell(f"{'later' if again else 'right'} after a publish: {_rate(played)}")
            found.append({"round": round_, "again": again, **asdict(played)})
        made.bench.server.retire(name)
    return found


def write_random_adapter(model_dir: Path, path: Path, seed: int) -> Path:
    """A LoRA adapter of every linear layer with small random weights, as a PEFT folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    tuned.save_pretrained(str(path))
    return path


def _told(latency: bool) -> str:
    return "clients take their time" if latency else "clients answer at once"


def _rate(played: Played) -> str:
    others = "" if played.others is None else f", others used {played.others:.0%} of the cores"
    return f"{played.turns_per_second:.1f} turns/s ({played.seconds:.1f} s{others})"
