"""Cards, clients and a small finished run for tests of the curriculum: real clients, scripted supporters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_run import BASE, Voiced, cards_for

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec, load_spec
from envs.clients import make_client
from envs.dialogue import DialoguePlan, run_dialogues
from envs.hashing import derived_seed
from envs.receipts import TrajectoryLog
from envs.supporters import MixingSupporter
from trainers.config import RunConfig
from trainers.config_file import dump_config
from trainers.curriculum import Curriculum, Outcome
from trainers.run_folder import MetricsLog, RunFolder
from trainers.run_numbers import Scorer, counts_of, step_numbers

STEPS, GROUPS, SIZE = 4, 2, 2
PLAYED = ("bus-depot-letter", "chest-for-the-wedding", "calculator-lid-gulu")
MILD = load_spec("appraisal-v1")
HARSH = MILD.model_copy(update={"name": "appraisal-harsh-v1", "failure_below": 40.0})


def config_of(**curriculum: Any) -> RunConfig:
    """A run's config with this curriculum and, beside client.spec, another client."""
    trainer = {"steps": STEPS, "cards_per_step": GROUPS, "dialogues_per_card": SIZE, "micro_batch": 1}
    curriculum = {"clients": ["configs/clients/harsh.yaml"], **curriculum}
    return RunConfig.model_validate({"trainer": trainer, "curriculum": curriculum})


def a_card(name: str, need: str | None = "listening", temperament: str | None = "passive") -> PersonaCard:
    """A card with this id, need and temperament; the rest is somebody's."""
    changes = {"id": name, "hidden_need": need, "temperament": temperament}
    return cards_for(PLAYED[:1])[0].model_copy(update=changes)


def curriculum_of(
    config: RunConfig, cards: Sequence[PersonaCard], specs: Sequence[ClientSpec] = (MILD, HARSH)
) -> Curriculum:
    """The config's curriculum before its first step."""
    groups = config.trainer.cards_per_step
    return Curriculum(config.curriculum, cards, specs, seed=config.run.seed, groups=groups)


def make_curriculum_run(path: Path, config: RunConfig) -> Path:
    """Write a finished run, without evaluations, whose steps were chosen by the config's curriculum."""
    cards, specs = cards_for(PLAYED), {spec.name: spec for spec in (MILD, HARSH)}
    curriculum = curriculum_of(config, cards)
    with RunFolder.create(path) as run:
        run.record(
            dump_config(config),
            [*cards, *cards_for(["biscuit-tin"])],
            list(specs.values()),
            {"run": config.run.seed},
            base=BASE,
        )
        log, metrics = TrajectoryLog(run.trajectories), MetricsLog(run.metrics)
        history = []
        for step in range(STEPS):
            plans = []
            for group, (card_id, spec_name) in enumerate(curriculum.of(step)):
                card, spec = next(card for card in cards if card.id == card_id), specs[spec_name]
                for member in range(SIZE):
                    seed = derived_seed(step, group)
                    supporter = Voiced(MixingSupporter("en", derived_seed(step, group, member)), f"v{step}")
                    name = f"{step:06d}-{group:03d}-{member:03d}-{card_id}"
                    plans.append(DialoguePlan(name, card, spec, seed, make_client(card, spec, seed), supporter))
            talks = asyncio.run(run_dialogues(plans, concurrency=4))
            log.append(*talks)
            with Scorer(config, path) as scorer:
                numbers = step_numbers(scorer.step(talks), config, history)
            history.append(counts_of(numbers))
            metrics.append({"step": step, **numbers, **curriculum.learn(step, [Outcome.of(talk) for talk in talks])})
        run.finish()
    return path
