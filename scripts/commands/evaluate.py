"""``attune evaluate``: the base policy or an adapter over held-out cards, its difference from another evaluation."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from envs.cards import PersonaCard, Split
from envs.client_spec import ClientSpec
from envs.errors import InputError
from envs.trajectory import Trajectory
from scripts.console import JsonFlag, command_app, print_json, stderr, stdout
from scripts.tables import evaluation_table, language_table
from trainers import assembly
from trainers.client_models import ModelPool, check_client, training_clients
from trainers.config import RunConfig
from trainers.config_file import load_config
from trainers.evaluation import (
    COMPARISON,
    Evaluation,
    EvaluationSettings,
    check_budget,
    check_unused,
    compare,
    read_trajectories,
    settings_for,
    summarise,
)
from trainers.evaluation import evaluate as evaluate_supporter
from trainers.language import LANGUAGE, LanguageMeasures, measure_language, perplexity
from trainers.manifest import write_json
from trainers.statistics import Resampling

SERVER_LOG = "policy_server.log"

app = command_app("attune evaluate --config configs/demo.yaml --adapter runs/demo/adapters/final --out runs/again")


@dataclass(frozen=True)
class Job:
    """One evaluation, checked and ready to run. ``adapter``: its folder; None: the base model."""

    config: RunConfig
    adapter: Path | None
    cards: list[PersonaCard]
    spec: ClientSpec
    settings: EvaluationSettings
    out: Path
    trained_with: str  # names of the client specs of training


@app.command(epilog=app.info.epilog)
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for the dialogues and the results.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; none: the defaults.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of the adapter.")] = None,
    base: Annotated[bool, typer.Option("--base", help="The base model, without an adapter.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Folder of an evaluation to tell the paired difference to.")
    ] = None,
    split: Annotated[Split | None, typer.Option(help="Which cards are played.", show_default="the config's")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Dialogues with each card.", show_default="the config's")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Let a policy talk with held-out clients and say how they feel in the end, with 95 % intervals over the cards."""
    job = _job(load_config(config, overrides or []), adapter, base, split, seeds, out)
    before = _before(against, job) if against else []
    evaluation, language = run(job)
    difference = compare(before, read_trajectories(out), job.cards, job.settings) if before else None
    if difference:
        write_json(out / COMPARISON, difference.model_dump(mode="json"))
    if json:
        numbers = evaluation.model_dump(mode="json", exclude={"outcomes"})
        paired = difference.model_dump(mode="json") if difference else None
        measures = language.model_dump(mode="json")
        clients = {"training": job.trained_with, "evaluation": job.spec.name}
        found = {"out": str(out), "clients": clients, "evaluation": numbers, "language": measures}
        print_json(found | {"difference": paired})
        return
    name = "base" if adapter is None else "adapter"
    shown = {"before": summarise(before, job.cards, job.settings)} if before else {}
    stdout().print(evaluation_table(shown | {name: evaluation}, difference, job.trained_with))
    stdout().print()
    stdout().print(language_table({name: language}))


def _job(config: RunConfig, adapter: Path | None, base: bool, split: Split | None, seeds: int | None, out: Path) -> Job:
    """Check all that can be checked before anything heavy is imported."""
    if base == (adapter is not None):
        raise InputError("give either --base or --adapter DIR, to say which policy is evaluated")
    if adapter:
        assembly.check_adapter(adapter)
    check_unused(out)
    client = config.held_out_client
    spec, cards = assembly.client_spec(config, client), assembly.cards_of(config, split or config.evaluation.split)
    check_client(client, spec, cards)
    resampling = Resampling(resamples=config.evaluation.bootstrap_resamples)
    settings = settings_for(spec, seeds or config.evaluation.seeds_per_card, resampling)
    trained_with = ", ".join(one.name for _, one in training_clients(config))
    return Job(config, adapter, cards, spec, settings, out, trained_with)


def _before(folder: Path, job: Job) -> list[Trajectory]:
    """The dialogues to compare with. Raises InputError when they aren't the job's: other cards, seeds or rules."""
    before = read_trajectories(folder)
    found = summarise(before, job.cards, job.settings)
    if found.dialogues != len(job.cards) * len(job.settings.seeds):
        raise InputError(
            f"{folder}: has {found.dialogues} of the dialogues; evaluate both with the same --seeds and --split"
        )
    if found.spec_hash != job.spec.hash:
        raise InputError(
            f"{folder}: was played with other client rules ({found.spec}); evaluate both with the same ones"
        )
    return before


def run(job: Job) -> tuple[Evaluation, LanguageMeasures]:
    """Start the engine, play, measure, and leave everything in the job's folder."""
    config = job.config
    model_dir = assembly.policy_dir(config, progress=lambda line: stderr.print(line, markup=False))
    templates = assembly.chat_templates(config, model_dir, job.cards)
    stderr.print(f"starting the policy server ({config.engine.kind})", markup=False)
    with (
        closing(assembly.start_server(config, model_dir, job.out / SERVER_LOG)) as server,
        ModelPool(config, job.out, lambda line: stderr.print(line, markup=False)) as models,
    ):
        adapter = server.publish(job.adapter) if job.adapter else None
        factory = assembly.policy_factory(config, server, templates, adapter)
        with Progress(console=stderr, transient=True) as progress:
            bar = progress.add_task("dialogues", total=len(job.cards) * len(job.settings.seeds))
            evaluation = asyncio.run(
                evaluate_supporter(
                    factory, job.cards, job.spec, job.settings, job.out,
                    client=models.maker(config.held_out_client, job.spec),
                    concurrency=config.dialogue.concurrency,
                    deadline_seconds=config.dialogue.deadline_seconds,
                    on_done=lambda trajectory: progress.advance(bar),
                )
            )  # fmt: skip
    if told := check_budget(evaluation, config.trainer.error_budget, job.out):
        stderr.print(told, markup=False, soft_wrap=True)
    end_of_turn = next(iter(templates.values())).end_of_turn
    return evaluation, _language(job, read_trajectories(job.out), model_dir, end_of_turn)


def _language(job: Job, trajectories: list[Trajectory], model_dir: Path, end_of_turn: int) -> LanguageMeasures:
    """Measured once the server has given its memory back, since the model is loaded again in fp32."""
    device = f"cuda:{job.config.devices.engine[0]}" if job.config.devices.engine else "cpu"
    measures = measure_language(trajectories, job.spec, job.settings.resampling)
    strange = perplexity(trajectories, model_dir, end_of_turn, job.settings.resampling, device)
    measures = measures.model_copy(update={"perplexity": strange})
    write_json(job.out / LANGUAGE, measures.model_dump(mode="json"))
    return measures
