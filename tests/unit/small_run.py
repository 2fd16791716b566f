"""A small finished run for tests: real clients, scripted supporters with made-up token ids, a made-up adapter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from envs.cards import CARDS_DIR, Language, PersonaCard, load_card
from envs.client_spec import ClientSpec, load_spec
from envs.clients import Models, make_client
from envs.dialogue import DialoguePlan, Supporter, run_dialogues
from envs.hashing import derived_seed, text_hash
from envs.receipts import TrajectoryLog
from envs.supporters import GoodSupporter, MixingSupporter
from envs.trajectory import Generation, Message
from trainers.config import RunConfig
from trainers.evaluation import (
    Comparison,
    DialogueKey,
    Evaluation,
    compare,
    comparisons_among,
    evaluate,
    read_trajectories,
    settings_for,
)
from trainers.language import LANGUAGE, measure_language
from trainers.manifest import write_json
from trainers.run_folder import MetricsLog, RunFolder
from trainers.run_numbers import Played, Scorer, credit_of, step_numbers, summary_numbers
from trainers.statistics import Resampling
from trainers.warm_start_config import WarmStart

TRAINED, HELD_OUT = ("bus-depot-letter", "biscuit-tin"), ("back-from-malmo", "band-vote-singer")
GROUP = 3
CONFIG = RunConfig.model_validate(
    {
        "run": {"name": "small"},
        "trainer": {"steps": 2, "cards_per_step": 2, "dialogues_per_card": GROUP, "micro_batch": 1},
        "evaluation": {"seeds_per_card": 2},
    }
)
WARM = WarmStart(data=["talks.jsonl"], epochs=2, batch=2)
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


def make_run(path: Path, *, warm: bool = False) -> Path:
    """Write a whole run: two steps, evaluations of base and tuned, comparison, language, adapter, summary, manifest.

    ``warm``: with a warm start of three dialogues, two a step.
    """
    spec, trained, held_out = load_spec("appraisal-v1"), cards_for(TRAINED), cards_for(HELD_OUT)
    config, texts = CONFIG, {"prompts/supporter_en.txt": "You listen.\n"}
    if warm:
        config = config.model_copy(update={"warm_start": WARM})
        told = {"data": ["talks.jsonl"], "dialogues": 3, "imitated": 3, "replies": 9, "tokens": 400}
        told |= {"trained_tokens": 90, "without_card": 1, "cards": {trained[0].id: trained[0].hash}, "sha256": "a" * 64}
        texts["warm_start.json"] = json.dumps(told, indent=2) + "\n"
    with RunFolder.create(path) as run:
        cards = [*trained, *held_out]
        record = yaml.safe_dump(config.model_dump(mode="json"))
        run.record(record, cards, [spec], {"run": 0}, base=BASE, texts=texts)
        if warm:
            _write_adapter(run.adapter("warm_start"))
            for step in range(4):
                MetricsLog(run.path / "warm_start.jsonl").append({"step": step, "loss": 2.0 - step / 8})
        _train(run, trained, spec)
        found = _evaluate(run, held_out, spec, warm)
        _write_adapter(run.adapter("final"))
        run.write_json("summary.json", {"seconds": 12.5, **summary_numbers(*found), "verified": True})
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
    run: RunFolder, cards: Sequence[PersonaCard], spec: ClientSpec, warm: bool
) -> tuple[dict[str, Evaluation], dict[tuple[str, str], Comparison]]:
    settings = settings_for(spec, 2, Resampling(resamples=200))
    supporters: dict[str, type] = {"base": MixingSupporter, "tuned": GoodSupporter}
    if warm:
        supporters["warm_start"] = Halfway
    evaluations = {}
    for side, kind in supporters.items():

        def factory(key: DialogueKey, side: str = side, kind: type = kind) -> Supporter:
            return Voiced(kind(key.language, key.dialogue_seed), side)

        evaluations[side] = asyncio.run(evaluate(factory, cards, spec, settings, run.evaluation(side)))
        measures = measure_language(read_trajectories(run.evaluation(side)), spec, settings.resampling)
        write_json(run.evaluation(side) / LANGUAGE, measures.model_dump(mode="json"))
    comparisons = {}
    for (side, name), other in comparisons_among(evaluations).items():
        before, after = (read_trajectories(run.evaluation(one)) for one in (other, side))
        comparisons[side, name] = compare(before, after, cards, settings)
        write_json(run.evaluation(side) / name, comparisons[side, name].model_dump(mode="json"))
    return evaluations, comparisons


class Halfway:
    """Good on its first reply, and at random after that."""

    def __init__(self, language: Language, seed: int) -> None:
        self._good, self._mixing = GoodSupporter(language, seed), MixingSupporter(language, seed)

    async def reply(self, messages: Sequence[Message]) -> Generation:
        return await (self._good if len(messages) == 1 else self._mixing).reply(messages)


def _write_adapter(folder: Path) -> None:
    folder.mkdir(parents=True)
    weights = {f"layer.{name}.weight": np.ones((4, 16), dtype=np.float32) for name in ("lora_A", "lora_B")}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": str(folder.resolve() / "base"), "revision": None}
    write_json(folder / "adapter_config.json", config | {"target_modules": ["q_proj"], "auto_mapping": text_hash("x")})
