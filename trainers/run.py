"""One run, whole: base evaluated, adapter trained, adapter evaluated, everything written down and verified.

The same steps whatever the size: a small model on two cores or a large one on several GPUs. What differs is the config.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.cards import Language
from envs.errors import RunError
from envs.trajectory import Trajectory
from rewards.canaries import load_canaries
from trainers import assembly
from trainers.client_models import MODELS, ModelPool
from trainers.config import RunConfig
from trainers.config_file import dump_config
from trainers.evaluation import (
    BASE,
    TRAJECTORIES,
    TUNED,
    WARM_START,
    Comparison,
    Evaluation,
    check_budget,
    compare,
    comparisons_among,
    evaluate,
    read_trajectories,
    settings_for,
)
from trainers.gate_reading import live_reader
from trainers.language import LANGUAGE, measure_language, perplexity
from trainers.manifest import write_json
from trainers.memory import measured_memory
from trainers.plan import Plan
from trainers.policy_server import PolicyServer
from trainers.quantization import check_quantization
from trainers.ranks import Ranks, check_ranks, together
from trainers.release import ReleaseCheck, check_release
from trainers.run_folder import RunFolder, model_identity
from trainers.run_numbers import credit_assigner, summary_numbers, switch_rule
from trainers.scoring import judge_files, live_scoring, watching_judge
from trainers.statistics import Resampling
from trainers.usage import USAGE
from trainers.verification import verify_run
from trainers.warm_start_data import RECORD, Imitation, data_record, imitations
from trainers.watch import Watch
from trainers.watching import Look, Watcher

if TYPE_CHECKING:
    from trainers.chat_template import ChatTemplate

SERVER_LOG = "policy_server.log"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Progress:
    """Who is told how far a run is. ``phase``: what begins now; ``step``: a line of metrics.jsonl; ``dialogue``: one
    more of an evaluation's dialogues is done."""

    phase: Callable[[str], None] = lambda text: None
    step: Callable[[dict[str, Any]], None] = lambda line: None
    dialogue: Callable[[Trajectory], None] = lambda trajectory: None


def run(plan: Plan, progress: Progress, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Run a plan from the base model to a verified record and return its summary, which is also written down.

    Raises InputError for a folder that can't be used, RunError when the run can't go on. What was recorded until then
    stays, without the manifest that only a whole run has. Under a launcher every rank calls this; the first one keeps
    the record and returns the summary, the others train with it and return an empty one.
    """
    config = plan.config
    check_ranks(config)
    check_quantization(config.policy.quantization)
    with together(config.trainer.rank_timeout, on_gpu=bool(config.devices.training)) as ranks:
        return _follow(plan, ranks, resume) if ranks.rank else _lead(plan, ranks, progress, resume, overwrite)


def _lead(plan: Plan, ranks: Ranks, progress: Progress, resume: bool, overwrite: bool) -> dict[str, Any]:
    """What the first rank does: everything, and it tells the others when they are needed."""
    started, config = time.monotonic(), plan.config
    with RunFolder.create(config.run.folder, resume=resume, overwrite=overwrite) as folder:
        model_dir = assembly.policy_dir(config, progress.phase)
        templates = assembly.chat_templates(config, model_dir, [*plan.train_cards, *plan.held_out_cards])
        dialogues = _imitations(plan, templates)
        _record(plan, folder, model_dir, templates, dialogues)
        progress.phase(f"starting the policy server ({config.engine.kind})")
        with (
            closing(assembly.start_server(config, model_dir, folder.path / SERVER_LOG)) as server,
            ModelPool(config, folder.path, progress.phase) as models,
        ):
            play = _Play(plan, folder, server, templates, models, progress)
            play.evaluate(BASE, None)
            ranks.reached(WARM_START)
            start = _warm_start(plan, folder.path, model_dir, templates, dialogues, progress)
            if start:
                name = server.publish(start)
                play.evaluate(WARM_START, name)
                server.retire(name)
            ranks.reached(TUNED)
            adapter = _train(plan, folder.path, model_dir, server, templates, models, start, resume, progress)
            play.evaluate(TUNED, server.publish(adapter))
            if report := models.report():
                folder.write_json(MODELS, {"models": report})
        progress.phase("measuring the language of the policies")
        numbers = _compare(plan, folder, model_dir, next(iter(templates.values())).end_of_turn)
        clients = {"training": ", ".join(s.name for s in plan.training_specs), "evaluation": plan.held_out_spec.name}
        memory = measured_memory(config, model_dir, folder.path)
        summary = {"seconds": None, "clients": clients, **numbers, "memory": memory, "adapter_dir": str(adapter)}
        summary["verified"] = None
        folder.write_json(SUMMARY, summary)
        folder.finish()
        progress.phase("verifying: every emotion, score and total is computed again")
        verification = verify_run(folder.path)
        summary |= {"seconds": round(time.monotonic() - started, 1), "verified": verification.verified}
        folder.write_json(SUMMARY, summary)
        folder.finish()
    return summary


def _follow(plan: Plan, ranks: Ranks, resume: bool) -> dict[str, Any]:
    """What a rank but the first does: train with it, and wait while it evaluates."""
    config = plan.config
    model_dir = assembly.policy_dir(config)
    templates = assembly.chat_templates(config, model_dir, [*plan.train_cards, *plan.held_out_cards])
    with (
        closing(assembly.join_server(config, model_dir, config.run.folder / SERVER_LOG)) as server,
        ModelPool(config, config.run.folder) as models,
    ):
        ranks.wait_for(WARM_START)
        start = _warm_start(plan, config.run.folder, model_dir, templates, _imitations(plan, templates), Progress())
        ranks.wait_for(TUNED)
        _train(plan, config.run.folder, model_dir, server, templates, models, start, resume, Progress())
    return {}


def _imitations(plan: Plan, templates: dict[Language, ChatTemplate]) -> list[Imitation]:
    """The warm start's dialogues as token ids; none without one. Raises InputError when none fits."""
    policy = plan.config.policy
    limits = (policy.context_tokens, policy.max_new_tokens)
    return imitations(plan.examples, templates, *limits) if plan.examples else []


def _warm_start(
    plan: Plan,
    folder: Path,
    model_dir: Path,
    templates: dict[Language, ChatTemplate],
    dialogues: list[Imitation],
    progress: Progress,
) -> Path | None:
    """The adapter that RL goes on from; None without a warm start. Every rank takes part, as in RL."""
    if not dialogues:
        return None
    from trainers.warm_start import warm_start

    progress.phase(f"warm start: imitating {len(dialogues)} dialogues")
    return warm_start(
        assembly.train_settings(plan.config),
        plan.config.warm_start,
        dialogues,
        model_dir=model_dir,
        run_dir=folder,
        tokenizer=next(iter(templates.values())).tokenizer,
    )


def _record(
    plan: Plan,
    folder: RunFolder,
    model_dir: Path,
    templates: dict[Language, ChatTemplate],
    dialogues: list[Imitation],
) -> None:
    from trainers.chat_template import read_prompt

    config = plan.config
    policy = config.policy
    prompts = {language: read_prompt(language, policy.system_prompt, policy.format) for language in templates}
    texts = {f"prompts/supporter_{language}.txt": text for language, text in prompts.items() if text}
    if plan.examples:
        told = data_record(config.warm_start, plan.examples, dialogues)
        texts[RECORD] = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    folder.record(
        dump_config(config),
        [*plan.train_cards, *plan.held_out_cards],
        plan.training_specs + [plan.held_out_spec] * (plan.held_out_spec not in plan.training_specs),
        {"run": config.run.seed},
        base=model_identity(model_dir, config.policy.model),
        texts=texts | judge_files(config),
    )


def _train(
    plan: Plan,
    folder: Path,
    model_dir: Path,
    server: PolicyServer,
    templates: dict[Language, ChatTemplate],
    models: ModelPool,
    start: Path | None,
    resume: bool,
    progress: Progress,
) -> Path:
    from trainers.rollouts import Player
    from trainers.train import train

    config = plan.config
    scoring = live_scoring(config, models.judges, folder, live_reader(config, models.views, folder))
    progress.phase(f"training: {config.trainer.steps} steps")
    return train(
        assembly.train_settings(config),
        model_dir=model_dir,
        run_dir=folder,
        server=server,
        templates=templates,
        cards=plan.train_cards,
        spec=plan.spec,
        make_client=models.maker(config.client, plan.spec),
        further=[Player(spec, models.maker(config.client, spec)) for spec in plan.further_specs],
        schedule=plan.curriculum(folder / TRAJECTORIES),
        reward=scoring,
        compare=scoring.compared,
        rule=switch_rule(config),
        credit=credit_assigner(config),
        watcher=_watcher(plan, folder, server, templates, models, progress),
        start=start,
        resume=resume,
        on_step=progress.step,
    )


def _watcher(
    plan: Plan,
    folder: Path,
    server: PolicyServer,
    templates: dict[Language, ChatTemplate],
    models: ModelPool,
    progress: Progress,
) -> Watcher | None:
    """Who watches the run, on the first rank; None where the config names no rules."""
    config, term = plan.config, plan.config.watch
    if plan.watch_rules is None or int(os.environ.get("RANK", "0")):
        return None
    asked = live_scoring(config, lambda judge: models.judges(judge, fresh=True), None)
    held_out_judge = watching_judge(config, models.judges) if term.judge else None
    look = Look(
        factory=lambda adapter: assembly.policy_factory(config, server, templates, adapter),
        cards=plan.watch_cards,
        spec=plan.held_out_spec,
        client=models.maker(config.held_out_client, plan.held_out_spec),
        judge=held_out_judge,
        concurrency=config.dialogue.concurrency,
        deadline_seconds=config.dialogue.deadline_seconds,
    )
    return Watcher(
        watch=Watch(plan.watch_rules),
        every=term.every,
        look=look,
        canaries=load_canaries(config.cards.languages) if term.canaries else (),
        rewards=[reward for reward, _ in asked.terms],
        folder=folder,
        tell=progress.phase,
    )


@dataclass(frozen=True)
class _Play:
    """What the evaluations of a run share."""

    plan: Plan
    folder: RunFolder
    server: PolicyServer
    templates: dict[Language, ChatTemplate]
    models: ModelPool
    progress: Progress

    def evaluate(self, name: str, adapter: str | None) -> None:
        """Play the held-out cards; an evaluation that a resumed run already has is kept.

        Raises RunError when more dialogues break off than the config's error budget allows.
        """
        plan, config, out = self.plan, self.plan.config, self.folder.evaluation(name)
        if (out / "evaluation.json").exists():
            return
        settings = settings_for(
            plan.held_out_spec,
            config.evaluation.seeds_per_card,
            Resampling(resamples=config.evaluation.bootstrap_resamples),
        )
        for left in ("trajectories.jsonl", USAGE):
            (out / left).unlink(missing_ok=True)
        self.progress.phase(f"evaluating the {name} policy on {len(plan.held_out_cards)} held-out cards")
        evaluation = asyncio.run(
            evaluate(
                assembly.policy_factory(config, self.server, self.templates, adapter),
                plan.held_out_cards,
                plan.held_out_spec,
                settings,
                out,
                client=self.models.maker(config.held_out_client, plan.held_out_spec),
                concurrency=config.dialogue.concurrency,
                deadline_seconds=config.dialogue.deadline_seconds,
                on_done=self.progress.dialogue,
            )
        )
        try:
            told = check_budget(evaluation, config.trainer.error_budget, out)
        except RunError:
            (out / "evaluation.json").unlink()  # so that a resumed run plays it again
            raise
        if told:
            self.progress.phase(told)


def _compare(plan: Plan, folder: RunFolder, model_dir: Path, end_of_turn: int) -> dict[str, Any]:
    """Language of each, the paired differences, and the summary's numbers."""
    config, cards = plan.config, plan.held_out_cards
    resampling = Resampling(resamples=config.evaluation.bootstrap_resamples)
    device = "cuda" if config.devices.training else "cpu"
    names = (BASE, WARM_START, TUNED) if plan.examples else (BASE, TUNED)
    played = {name: read_trajectories(folder.evaluation(name)) for name in names}
    for name, trajectories in played.items():
        measures = measure_language(trajectories, plan.held_out_spec, resampling)
        strange = perplexity(trajectories, model_dir, end_of_turn, resampling, device)
        measures = measures.model_copy(update={"perplexity": strange})
        write_json(folder.evaluation(name) / LANGUAGE, measures.model_dump(mode="json"))
    settings = settings_for(plan.held_out_spec, config.evaluation.seeds_per_card, resampling)
    found: dict[tuple[str, str], Comparison] = {}
    for (name, file), other in comparisons_among(names).items():
        found[name, file] = compare(played[other], played[name], cards, settings)
        write_json(folder.evaluation(name) / file, found[name, file].model_dump(mode="json"))
    evaluations = {
        name: Evaluation.model_validate_json((folder.evaluation(name) / "evaluation.json").read_text(encoding="utf-8"))
        for name in names
    }
    return summary_numbers(evaluations, found)


def load_back(config: RunConfig, release_dir: Path, run_dir: Path) -> ReleaseCheck:
    """Load a release into a fresh server, where it has to answer as the evaluated adapter did; else raises RunError."""
    model_dir = assembly.policy_dir(config)
    cards = assembly.cards_of(config, config.evaluation.split)
    template = next(iter(assembly.chat_templates(config, model_dir, cards).values()))
    with closing(assembly.start_server(config, model_dir, run_dir / "release_server.log")) as server:
        return asyncio.run(
            check_release(
                release_dir,
                server,
                read_trajectories(run_dir / "evaluation" / TUNED),
                temperature=config.policy.temperature,
                max_tokens=config.policy.max_new_tokens,
                stop_ids=(template.end_of_turn,),
                tolerance=config.trainer.logprob_tolerance,
            )
        )
