"""The model card of a release: what a finished run recorded, for a reader who decides whether to use its adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from envs.card_set import find_leaks
from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.errors import RunError
from envs.hashing import content_hash
from trainers.assembly import LORA_RANKS
from trainers.client_config import BOOTSTRAP, ModelSource
from trainers.config import RunConfig
from trainers.evaluation import (
    BASE,
    COMPARISON,
    SUMMARY,
    TRAJECTORIES,
    TUNED,
    WARM_COMPARISON,
    WARM_START,
    Comparison,
    Evaluation,
    comparisons_among,
)
from trainers.language import LANGUAGE, LanguageMeasures
from trainers.manifest import MANIFEST, file_hash
from trainers.run_folder import model_identity
from trainers.scoring import judges_of
from trainers.statistics import Estimate
from trainers.verification import Verification
from trainers.warm_start_data import RECORD as WARM_RECORD

TEMPLATES = Path(__file__).resolve().parent.parent / "configs" / "templates"
NOTHING = "not measured"
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class RunRecord:
    """What a model card is written from. ``trained_on``: the cards of dialogues that were rewarded or imitated."""

    folder: Path
    config: RunConfig
    provenance: Mapping[str, Any]
    base: Mapping[str, Any]
    cards: tuple[PersonaCard, ...]
    trained_on: tuple[PersonaCard, ...]
    spec: ClientSpec
    trained_with: tuple[str, ...]
    metrics: tuple[Mapping[str, Any], ...]
    evaluations: Mapping[str, Evaluation]
    comparisons: Mapping[tuple[str, str], Comparison]  # as in trainers.evaluation.COMPARISONS
    warm_data: Mapping[str, Any] | None  # what was imitated first; None without a warm start
    language: Mapping[str, LanguageMeasures]
    prompts: tuple[str, ...]
    verification: Verification

    @property
    def name(self) -> str:
        """The name of the released adapter."""
        return self.config.release.name or self.config.run.name

    @property
    def comparison(self) -> Comparison:
        """Tuned less base."""
        return self.comparisons[TUNED, COMPARISON]

    @property
    def evaluated_on(self) -> tuple[PersonaCard, ...]:
        """The cards of the evaluation."""
        ids = {outcome.card_id for outcome in self.evaluations["tuned"].outcomes}
        return tuple(card for card in self.cards if card.id in ids)


def read_run(folder: Path, verification: Verification) -> RunRecord:
    """Read a verified run. Raises RunError naming what a release needs and the run doesn't hold."""
    config = RunConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    warm = bool(config.warm_start.data)
    sides = [folder / "evaluation" / side for side in (BASE, *([WARM_START] if warm else []), TUNED)]
    compared = {key: folder / "evaluation" / "/".join(key) for key in comparisons_among([side.name for side in sides])}
    needed = (folder / TRAJECTORIES, *(side / SUMMARY for side in sides), *compared.values())
    if missing := [path for path in needed if not path.is_file()]:
        raise RunError(f"{missing[0]}: is missing: a release tells how base and tuned compare; evaluate the run first")
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    cards = tuple(PersonaCard.model_validate(line["card"]) for line in _lines(folder / "cards.jsonl"))
    imitated = json.loads((folder / WARM_RECORD).read_text(encoding="utf-8")) if warm else None
    trained = {line["card_hash"] for line in _lines(folder / TRAJECTORIES)}
    trained |= {*imitated["cards"].values()} if imitated else set()
    evaluations = {path.name: _read(Evaluation, path / SUMMARY) for path in sides}
    measured = all((path / LANGUAGE).is_file() for path in sides)
    specs = [ClientSpec.model_validate_json(path.read_bytes()) for path in sorted((folder / "specs").glob("*.json"))]
    return RunRecord(
        folder=folder,
        config=config,
        provenance=provenance,
        base=provenance.get("base") or _base(folder, config),
        cards=cards,
        trained_on=tuple(card for card in cards if card.hash in trained),
        spec=next(spec for spec in specs if spec.hash == evaluations["tuned"].spec_hash),
        trained_with=tuple(sorted({line["spec"] for line in _lines(folder / TRAJECTORIES)})) or (NOTHING,),
        metrics=tuple(_lines(folder / "metrics.jsonl")),
        evaluations=evaluations,
        comparisons={key: _read(Comparison, path) for key, path in compared.items()},
        warm_data=imitated,
        language={p.name: _read(LanguageMeasures, p / LANGUAGE) for p in sides} if measured else {},
        prompts=tuple(path.read_text(encoding="utf-8").strip() for path in sorted((folder / "prompts").glob("*.txt"))),
        verification=verification,
    )


def _read(kind: type[M], path: Path) -> M:
    return kind.model_validate_json(path.read_bytes())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def _base(folder: Path, config: RunConfig) -> Mapping[str, Any]:
    """The base model's identity, from the adapter's config where the run did not record it."""
    adapter = json.loads((folder / "adapters" / "final" / "adapter_config.json").read_text(encoding="utf-8"))
    path = Path(adapter.get("base_model_name_or_path") or config.policy.model)
    return model_identity(path, config.policy.model)


def evaluation_json(run: RunRecord) -> dict[str, Any]:
    """evaluation.json of the release. Of an error only its kind is told, since its text may name paths."""
    evaluations = {side: evaluation.model_dump(mode="json") for side, evaluation in run.evaluations.items()}
    for evaluation in evaluations.values():
        for outcome in evaluation["outcomes"]:
            outcome["error"] = outcome["error"] and outcome["error"].split(":")[0]
    language = {side: measures.model_dump(mode="json") for side, measures in run.language.items()}
    compared = {"comparison": run.comparison.model_dump(mode="json")}
    if run.warm_data:
        compared["comparison_warm_start_base"] = run.comparisons[WARM_START, COMPARISON].model_dump(mode="json")
        compared["comparison_tuned_warm_start"] = run.comparisons[TUNED, WARM_COMPARISON].model_dump(mode="json")
    return {**evaluations, **compared, "language": language or None}


def render(run: RunRecord, *, folder: str, parameters: int, adapter_hash: str) -> str:
    """The model card, Markdown with YAML front matter. ``folder``: the name of the release's folder."""
    # Markdown, not HTML: nothing is escaped.
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {
        "estimate": _estimate,
        "percent": _percent,
        "number": lambda value: f"{value:g}",
        "one": lambda value: f"{value:.1f}",
        "two": lambda value: NOTHING if value is None else f"{value:.2f}",
        "cell": lambda values: "; ".join(values).replace("|", "\\|"),
    }
    return environment.get_template("model_card.md.j2").render(
        name=run.name,
        folder=folder,
        parameters=parameters,
        base=run.base,
        licence=run.config.release.licence,
        languages=sorted({card.language for card in run.trained_on or run.evaluated_on}),
        seed=run.config.run.seed,
        **{part: getattr(run.config, part) for part in ("lora", "trainer", "policy", "rewards")},
        **{part: run.provenance.get(part) for part in ("packages", "python", "code")},
        judges=_judges(run),
        gates=run.config.gates.names,
        gate_readers=[_source_name(source) for source in run.config.gates.models],
        spec=run.spec,
        trained_with=run.trained_with,
        bootstrapped=run.config.policy.model == BOOTSTRAP,
        served_rank=next((rank for rank in LORA_RANKS if rank >= run.config.lora.rank), run.config.lora.rank),
        training=_training(run),
        data=[_data("training", run.trained_on), _data("evaluation", run.evaluated_on)],
        shared=len({card.hash for card in run.trained_on} & {card.hash for card in run.evaluated_on}),
        leaks=_leaks(run),
        acute=sum(card.risk == "acute" for card in run.evaluated_on),
        base_evaluation=run.evaluations["base"],
        tuned=run.evaluations["tuned"],
        comparison=run.comparison,
        warm=_warm_start(run),
        finding=_finding(run.comparison.mean_final_emotion),
        language=run.language,
        prompts=run.prompts,
        verified=run.verification,
        hashes={
            "adapter": adapter_hash,
            "spec": run.spec.hash,
            "cards": content_hash(sorted(card.hash for card in run.cards)),
            "manifest": file_hash(run.folder / MANIFEST),
        },
    )


def _warm_start(run: RunRecord) -> dict[str, Any] | None:
    """The warm start's data and evaluation, what it gave, what RL added, and its language; None without one."""
    if not run.warm_data:
        return None
    return {
        **run.warm_data,
        "term": run.config.warm_start,
        "evaluation": run.evaluations[WARM_START],
        "gained": run.comparisons[WARM_START, COMPARISON],
        "added": run.comparisons[TUNED, WARM_COMPARISON],
    }


def _judges(run: RunRecord) -> list[dict[str, Any]]:
    """The judges whose rubrics carried weight: rubric, names of the models, whether they did without a certificate."""
    weights = {term.name: term.weight for term in run.config.rewards}
    return [
        {
            "rubric": judge.rubric.name,
            "models": [_source_name(one) for one in term.models],
            "uncertified": term.uncertified,
        }
        for name, (term, judge) in judges_of(run.config, run.folder).items()
        if weights.get(name)
    ]


def _source_name(source: ModelSource) -> str:
    name = source.endpoint.model if source.endpoint else source.serve.model if source.serve else ""
    return Path(name).name if Path(name).is_absolute() else name


def _training(run: RunRecord) -> dict[str, Any]:
    """What the steps say: dialogues, failures, first and last mean emotion, largest likelihood difference (nats)."""
    emotions = [line.get("mean_final_emotion") for line in run.metrics]
    differences = [line.get("max_logprob_difference") for line in run.metrics]
    return {
        "steps": len(run.metrics),
        "dialogues": sum(line["dialogues"] for line in run.metrics),
        "failed": round(sum(line["dialogues"] * line["error_rate"] for line in run.metrics)),
        "first": emotions[0] if emotions else None,
        "last": emotions[-1] if emotions else None,
        "logprob_difference": max((value for value in differences if value is not None), default=None),
    }


def _data(use: str, cards: Sequence[PersonaCard]) -> dict[str, Any]:
    return {
        "use": use,
        "cards": len(cards),
        "languages": ", ".join(sorted({card.language for card in cards})),
        "licences": sorted({card.licence for card in cards}),
        "sources": sorted({card.source for card in cards}),
    }


def _leaks(run: RunRecord) -> int:
    """Pairs of a card that was trained on and one that was evaluated on which tell of the same person."""
    trained, evaluated = ({card.hash for card in cards} for cards in (run.trained_on, run.evaluated_on))
    pairs = [(leak.first.hash, leak.second.hash) for leak in find_leaks([*run.trained_on, *run.evaluated_on])]
    return sum((a in trained and b in evaluated) or (a in evaluated and b in trained) for a, b in pairs)


def _finding(difference: Estimate) -> str:
    """What the paired difference allows to say, in a sentence."""
    if difference.ci95 is None:
        return "There are too few cards for an interval of the difference, so nothing follows about other cards."
    low, high = difference.ci95
    if low > 0:
        return "The interval of the paired difference lies above 0: with this client, tuning raised the score."
    if high < 0:
        return "The interval of the paired difference lies below 0: with this client, tuning lowered the score."
    return "The interval of the paired difference holds 0: this evaluation does not show that tuning changed the score."


def _estimate(value: Estimate | None, sign: bool = False, scale: float = 1.0, unit: str = "") -> str:
    if value is None or value.mean is None:
        return NOTHING
    number = f"{{:{'+' if sign else ''}.1f}}"
    mean = number.format(value.mean * scale) + unit
    return mean if value.ci95 is None else f"{mean} [{', '.join(number.format(end * scale) for end in value.ci95)}]"


def _percent(value: Estimate | None, sign: bool = False) -> str:
    """A rate in percent; a difference of rates (``sign``) in percentage points."""
    return _estimate(value, sign, scale=100.0, unit=" points" if sign else " %")
