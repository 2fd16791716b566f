"""What a turn costs us when the engine answers at once: time a turn, and memory over ten thousand dialogues.

    python -m scripts.benchmark_parts.overhead 10000

plays so many dialogues, in steps as a run does, in a fresh process, and prints what it took.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.cards import PersonaCard
from envs.clients import make_client
from envs.clients.client import Client
from envs.dialogue import DialoguePlan, run_dialogues
from envs.hashing import derived_seed
from scripts.benchmark_parts.variants import check_played
from scripts.benchmark_parts.work import GROUP, StubClient, Talk, spec_of, talks
from trainers.assembly import cards_of, chat_templates, policy_dir
from trainers.chat_template import ChatTemplate
from trainers.config_file import load_config
from trainers.policy import PolicySupporter, Sampling
from trainers.policy_server import Sampled, SoleEngine

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
STEP = 64  # dialogues that are played, written down and let go of together
IN_FLIGHT = 64
TURNS = 4
REPLY = "That sounds hard. What was it like when you were alone with it in the evening?"
MIB = 2**20


@dataclass(frozen=True)
class EchoEngine(SoleEngine):
    """A policy server in this process that says the same at once."""

    ids: tuple[int, ...]

    async def generate(self, prompt_ids: Sequence[int], **_: Any) -> Sampled:
        """The reply, whatever was asked."""
        return Sampled(self.ids, (-0.5,) * len(self.ids), tuple(prompt_ids), "stop")

    def publish(self, adapter_dir: Path) -> str:
        """Nothing to load."""
        return adapter_dir.name

    def retire(self, name: str) -> None:
        """Nothing to forget."""


def echo_engine(template: ChatTemplate) -> EchoEngine:
    """An engine that answers with ``REPLY`` and an end-of-turn."""
    return EchoEngine((*template.reply_ids(REPLY), template.end_of_turn))


def milliseconds_a_turn(template: ChatTemplate, cards: Sequence[PersonaCard], client: str, dialogues: int) -> float:
    """Wall clock of one turn in one process, supporter and bookkeeping included; ``client``: null or embedded."""
    makers: dict[str, Callable[[Talk], Client]] = {"null": StubClient, "embedded": _embedded}
    plans = _plans(template, talks(cards, dialogues, TURNS, None, seed=0), makers[client])
    started = time.perf_counter()
    played = asyncio.run(run_dialogues(plans, IN_FLIGHT))
    seconds = time.perf_counter() - started
    check_played(played)
    return 1000 * seconds / sum(len(each.turns) for each in played)


def _embedded(talk: Talk) -> Client:
    return make_client(talk.card, spec_of(len(talk.waits)), derived_seed("client", talk.number // GROUP))


def _plans(template: ChatTemplate, work: Sequence[Talk], make: Callable[[Talk], Client]) -> list[DialoguePlan]:
    engine = echo_engine(template)
    return [
        DialoguePlan(
            f"echo-{talk.number}",
            talk.card,
            spec_of(len(talk.waits)),
            talk.number,
            make(talk),
            PolicySupporter(engine, template, None, talk.number, Sampling(max_tokens=len(engine.ids))),
        )
        for talk in work
    ]


def many_dialogues(total: int, marks: int = 5) -> list[dict[str, float]]:
    """Play ``total`` dialogues with the echo engine and the embedded client, and look ``marks`` times on the way.

    Each look: dialogues so far, seconds so far, and the process's peak in MiB.
    """
    config = load_config(CONFIG, [])
    cards = cards_of(config, config.cards.train_split)
    template = chat_templates(config, policy_dir(config), cards)["en"]
    work = talks(cards, total, TURNS, None, seed=0)
    seen: list[dict[str, float]] = []
    started = time.perf_counter()
    with asyncio.Runner() as runner:
        for first in range(0, total, STEP):
            plans = _plans(template, work[first : first + STEP], _embedded)
            check_played(runner.run(run_dialogues(plans, IN_FLIGHT)))
            done = first + len(plans)
            if done * marks >= total * (len(seen) + 1):
                seen.append({"dialogues": done, "seconds": time.perf_counter() - started, "peak_mib": peak_mib()})
    return seen


def in_a_fresh_process(total: int) -> list[dict[str, float]]:
    """``many_dialogues`` in a process whose peak nothing else has raised."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, str(total)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=CONFIG.parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """The most memory that this process has held, in MiB.

    On Linux from /proc: what resource tells counts in the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


if __name__ == "__main__":
    sys.stdout.write(json.dumps(many_dialogues(int(sys.argv[1]))) + "\n")
