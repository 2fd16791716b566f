"""A small finished run for tests: real clients, scripted supporters with made-up token ids, a made-up adapter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from envs.cards import CARDS_DIR, PersonaCard, load_card
from envs.client_spec import ClientSpec, load_spec
from envs.clients import Models, make_client
from envs.dialogue import DialoguePlan, Supporter, run_dialogues
from envs.hashing import derived_seed, text_hash
from envs.receipts import TrajectoryLog
from envs.supporters import GoodSupporter, MixingSupporter
from envs.trajectory import Generation, Message
from trainers.config import RunConfig
from trainers.evaluation import (
    COMPARISON,
    Comparison,
    DialogueKey,
    Evaluation,
    compare,
    evaluate,
    read_trajectories,
    settings_for,
)
from trainers.language import LANGUAGE, measure_language
from trainers.manifest import write_json
from trainers.run_folder import MetricsLog, RunFolder
from trainers.run_numbers import Played, Scorer, credit_of, step_numbers, summary_numbers
from trainers.statistics import Resampling

TRAINED, HELD_OUT = ("bus-depot-letter", "biscuit-tin"), ("back-from-malmo", "band-vote-singer")
GROUP = 3
CONFIG = RunConfig.model_validate(
    {
        "run": {"name": "small"},
        "trainer": {"steps": 2, "cards_per_step": 2, "dialogues_per_card": GROUP, "micro_batch": 1},
        "evaluation": {"seeds_per_card": 2},
    }
)
BASE = {"name": "little-base", "local": True, "sha256": "b" * 64}


class Voiced:
    """A scripted supporter whose replies have token ids, one per character."""

    def __init__(self, supporter: Supporter, version: str) -> None:
        self._supporter, self._version = supporter, version

    async def reply(self, messages: Sequence[Message]) -> Generation:
        said = await self._supporter.reply(messages)
        ids = tuple(map(ord, said.text))
        prompt = tuple(map(ord, messages[-1].text))
        logprobs = tuple(-(token % 7) / 8 for token in ids)
        return said.model_copy(
            update={"prompt_ids": prompt, "ids": ids, "logprobs": logprobs, "policy_version": self._version}
        )


def cards_for(names: Sequence[str]) -> list[PersonaCard]:
    return [load_card(CARDS_DIR / "en" / f"{name}.yaml") for name in names]


def make_run(path: Path) -> Path:
    """Write a whole run: two steps, evaluations of base and tuned, comparison, language, adapter, summary, manifest."""
    spec, trained, held_out = load_spec("appraisal-v1"), cards_for(TRAINED), cards_for(HELD_OUT)
    with RunFolder.create(path) as run:
        run.record(
            yaml.safe_dump(CONFIG.model_dump(mode="json")),
            [*trained, *held_out],
            [spec],
            {"run": 0},
            base=BASE,
            texts={"prompts/supporter_en.txt": "You listen.\n"},
        )
        _train(run, trained, spec)
        base, tuned, comparison = _evaluate(run, held_out, spec)
        _write_adapter(run.adapter("final"))
        run.write_json("summary.json", {"seconds": 12.5, **summary_numbers(base, tuned, comparison), "verified": True})
        run.finish()
    return path


def make_training(path: Path, spec: ClientSpec, models: Models) -> Path:
    """Write a run of two steps with clients that models play, without evaluations."""
    with RunFolder.create(path) as run:
        run.record(yaml.safe_dump(CONFIG.model_dump(mode="json")), cards_for(TRAINED), [spec], {"run": 0}, base=BASE)
        _train(run, cards_for(TRAINED), spec, models)
        _write_adapter(run.adapter("final"))
        run.finish()
    return path


def _train(run: RunFolder, cards: Sequence[PersonaCard], spec: ClientSpec, models: Models | None = None) -> None:
    log, metrics = TrajectoryLog(run.trajectories), MetricsLog(run.metrics)
    for step in range(2):
        plans = []
        for row in range(GROUP * len(cards)):
            group, member = divmod(row, GROUP)
            seed, card = derived_seed(step, group), cards[group]
            supporter = Voiced(MixingSupporter("en", derived_seed("policy", step, row)), f"v{step}")
            name = f"{step:06d}-{group:03d}-{member:03d}-{card.id}"
            plans.append(DialoguePlan(name, card, spec, seed, make_client(card, spec, seed, models), supporter))
        trajectories = asyncio.run(run_dialogues(plans, concurrency=4))
        for trajectory in trajectories:
            log.append(trajectory)
        with Scorer(CONFIG, run.path) as scorer:
            rows = [scorer.played(trajectory) for trajectory in trajectories]
        _append_scores(run.path / "scores.jsonl", rows)
        metrics.append({"step": step, **step_numbers(rows, CONFIG), "loss": 0.1, "max_logprob_difference": 2e-6})


def _append_scores(path: Path, rows: Sequence[Played]) -> None:
    advantages = credit_of(rows, CONFIG).advantages
    with path.open("a", encoding="utf-8") as file:
        for row, advantage in zip(rows, advantages, strict=True):
            line = {"dialogue_id": row.trajectory.dialogue_id, "advantage": advantage, "value": row.total}
            file.write(json.dumps(line | {"name": "total"}) + "\n")


def _evaluate(
    run: RunFolder, cards: Sequence[PersonaCard], spec: ClientSpec
) -> tuple[Evaluation, Evaluation, Comparison]:
    settings = settings_for(spec, 2, Resampling(resamples=200))
    supporters = {"base": MixingSupporter, "tuned": GoodSupporter}
    evaluations = []
    for side, kind in supporters.items():

        def factory(key: DialogueKey, side: str = side, kind: type = kind) -> Supporter:
            return Voiced(kind(key.language, key.dialogue_seed), side)

        evaluations.append(asyncio.run(evaluate(factory, cards, spec, settings, run.evaluation(side))))
        measures = measure_language(read_trajectories(run.evaluation(side)), spec, settings.resampling)
        write_json(run.evaluation(side) / LANGUAGE, measures.model_dump(mode="json"))
    before, after = (read_trajectories(run.evaluation(side)) for side in supporters)
    comparison = compare(before, after, cards, settings)
    write_json(run.evaluation("tuned") / COMPARISON, comparison.model_dump(mode="json"))
    return evaluations[0], evaluations[1], comparison


def _write_adapter(folder: Path) -> None:
    folder.mkdir(parents=True)
    weights = {f"layer.{name}.weight": np.ones((4, 16), dtype=np.float32) for name in ("lora_A", "lora_B")}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": str(folder.resolve() / "base"), "revision": None}
    write_json(folder / "adapter_config.json", config | {"target_modules": ["q_proj"], "auto_mapping": text_hash("x")})
