"""Verification: a finished run checked against itself, without a model, from the receipts to the last table.

Whatever a run claims follows from its recorded replies: emotions from the client's rules, scores and totals from
emotions, advantages and each step's means from totals, evaluations from their dialogues, the summary from the
evaluations. All of it is computed again here. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.errors import InputError
from envs.trajectory import Record, Trajectory
from trainers.config import RunConfig
from trainers.curriculum import CURRICULUM, Curriculum, Outcome, recorded_curriculum
from trainers.evaluation import (
    BASE,
    COMPARISON,
    COMPARISONS,
    SUMMARY,
    TRAJECTORIES,
    TUNED,
    Comparison,
    Evaluation,
    compare,
    summarise,
)
from trainers.language import LANGUAGE, measure_language
from trainers.manifest import Problem, check_files, is_trajectory_log, read_manifest
from trainers.recorded_files import line_of, parsed, recorded_dialogues, recorded_json, recorded_lines, recorded_yaml
from trainers.replay import Case, check_dialogues, first_difference, shown
from trainers.run_folder import CODE, client_code
from trainers.run_numbers import (
    Counts,
    Played,
    Scorer,
    counts_of,
    credit_assigner,
    credit_of,
    step_numbers,
    step_of,
    summary_numbers,
)
from trainers.warm_start_data import METRICS as WARM_METRICS
from trainers.warm_start_data import RECORD as WARM_RECORD
from trainers.warm_start_data import recorded_problem

T = TypeVar("T")

# Relative. Means may be summed in another order here; a change in digits beyond this is the manifest's to find.
TOLERANCE = 1e-9

# What each check counts, in the order in which they are made.
CHECKS = {
    "files": "files that have the hash in the manifest",
    "cards": "cards, each with the hash of its content, and client specs",
    "receipts": "dialogues with an unbroken chain of receipts, and a known card and spec",
    "emotions": "emotions that follow from the change that the client wrote",
    "replay": "turns that come back when the client is played again",
    "totals": "dialogues scored again",
    "metrics": "steps whose means follow from their dialogues",
    "evaluation": "evaluations and comparisons computed again",
    "summary": "summaries whose numbers are those of the evaluations",
}


class Check(Record):
    """One kind of check. ``ok`` is None when it was not finished, because another one had found a problem."""

    checked: int
    ok: bool | None


class Verification(Record):
    """What came of verifying a run. ``problem``: what is not as recorded first, {"file", "line", "message"}."""

    verified: bool
    dialogues: int
    turns: int
    checks: dict[str, Check]
    problem: dict[str, str | int | None] | None


def verify_run(folder: Path) -> Verification:
    """Check a finished run. Raises InputError when the folder holds none, or one that has not finished."""
    run = _Run(folder)
    problem = None
    try:
        run.check()
    except Problem as found:
        problem = {"file": found.file, "line": found.line, "message": found.message}
    oks = {name: True if name in run.passed else None for name in CHECKS}
    if problem:
        oks[run.current] = False
    return Verification(
        verified=problem is None,
        dialogues=run.counts["receipts"],
        turns=run.counts["replay"],
        checks={name: Check(checked=count, ok=oks[name]) for name, count in run.counts.items()},
        problem=problem,
    )


class _Run:
    """The run under examination: what was read of it, what passed, and what is being checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = dict.fromkeys(CHECKS, 0)
        self.passed: set[str] = set()
        self.current = "files"
        self.cards: dict[str, PersonaCard] = {}
        self.specs: dict[str, ClientSpec] = {}
        self.played: dict[str, list[Played]] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.comparisons: dict[tuple[str, str], Comparison] = {}  # as in COMPARISONS

    def check(self) -> None:
        """Everything, in the order of ``CHECKS``. Raises Problem at the first that fails."""
        self.manifest = read_manifest(self.folder)
        self.counts["files"] = check_files(self.folder, self.manifest)
        self.passed.add("files")
        steps: dict[str, Callable[[], None]] = {
            "cards": self._read_cards,
            "receipts": self._check_dialogues,
            "totals": self._check_totals,
            "metrics": self._check_metrics,
            "evaluation": self._check_evaluations,
            "summary": self._check_summary,
        }
        for name, step in steps.items():
            self.current = name
            step()
            self.passed.add(name)

    def _read_cards(self) -> None:
        for name in ("config.yaml", "cards.jsonl"):
            if not (self.folder / name).is_file():
                raise Problem(name, None, "is missing; a run keeps its config and the cards that it played")
        for number, data in recorded_lines(self.folder, "cards.jsonl"):
            card = parsed(PersonaCard, data.get("card"), "cards.jsonl", number)
            if card.hash != data.get("hash"):
                raise Problem("cards.jsonl", number, f"card {card.id} does not have the hash that stands beside it")
            self.cards[card.hash] = card
        for path in sorted((self.folder / "specs").glob("*.json")):
            name = f"specs/{path.name}"
            spec = parsed(ClientSpec, recorded_json(self.folder, name), name)
            self.specs[spec.hash] = spec
        self.config = parsed(RunConfig, recorded_yaml(self.folder, "config.yaml"), "config.yaml")
        self.counts["cards"] = len(self.cards) + len(self.specs)
        if self.config.warm_start.data:
            self._check_warm_start()

    def _check_warm_start(self) -> None:
        """The dialogues that were imitated are of training cards, and were gone through as the config says."""
        for name in (WARM_RECORD, WARM_METRICS, "adapters/warm_start/adapter_model.safetensors"):
            if not (self.folder / name).is_file():
                raise Problem(name, None, "is missing; the configuration names dialogues to imitate (warm_start.data)")
        steps = [line.get("step") for _, line in recorded_lines(self.folder, WARM_METRICS)]
        record = recorded_json(self.folder, WARM_RECORD)
        if problem := recorded_problem(record, steps, self.config, self.cards):
            raise Problem(WARM_RECORD, None, problem)

    def _check_dialogues(self) -> None:
        """Receipts, card, spec, emotions, replay and total of every dialogue, line by line."""
        entries = self.manifest["files"]
        logs = {entry["path"]: entry["lines"] for entry in entries if is_trajectory_log(Path(entry["path"]))}
        with _computed("config.yaml", lambda: Scorer(self.config, self.folder)) as scorer:
            for name, lines in logs.items():
                if name == TRAJECTORIES:
                    steps = groupby(self._sound(name, lines), key=lambda talk: step_of(talk.dialogue_id))
                    self.played[name] = [row for _, step in steps for row in self._step(scorer, list(step))]
                else:
                    self.played[name] = [scorer.played(talk) for talk in self._sound(name, lines)]
        self.passed |= {"emotions", "replay"}

    def _sound(self, name: str, lines: int) -> Iterator[Trajectory]:
        """The dialogues of a log, each after its checks."""
        for case, finding in check_dialogues(self._cases(name), lines):
            if finding:
                self.current = finding.check
                raise Problem(name, case.line.number, finding.message + self._drift())
            trajectory = case.line.trajectory
            self.counts["receipts"] += 1
            self.counts["emotions"] += len(trajectory.emotions)
            self.counts["replay"] += len(trajectory.turns)
            yield trajectory

    def _step(self, scorer: Scorer, talks: Sequence[Trajectory]) -> list[Played]:
        try:
            return scorer.step(talks)
        except ValueError as error:
            self.current = "totals"
            raise Problem(TRAJECTORIES, None, f"can't be computed again: {error}") from error

    def _drift(self) -> str:
        """What to say besides when the clients of this code are not those that the run was played with."""
        played_with = (
            recorded_json(self.folder, "provenance.json") if (self.folder / "provenance.json").is_file() else {}
        )
        if played_with.get("client") in (None, client_code(CODE)):
            return ""
        revision = (played_with.get("code") or {}).get("git", "unknown")
        return f" (the client's code has changed since the run; verify it with its own, git revision {revision})"

    def _cases(self, name: str) -> Iterator[Case]:
        for line in recorded_dialogues(self.folder, name):
            trajectory = line.trajectory
            card, spec = self.cards.get(trajectory.card_hash), self.specs.get(trajectory.spec_hash)
            if card is None or card.id != trajectory.card_id:
                raise Problem(name, line.number, f"card {trajectory.card_id} with this hash is not in cards.jsonl")
            if spec is None or spec.name != trajectory.spec:
                raise Problem(name, line.number, f"client spec {trajectory.spec} with this hash is not in specs/")
            yield Case(line, card, spec)

    def _steps(self) -> dict[int | None, list[Played]]:
        rows = self.played.get(TRAJECTORIES, [])
        return {step: list(part) for step, part in groupby(rows, key=lambda row: step_of(row.trajectory.dialogue_id))}

    def _check_totals(self) -> None:
        """scores.jsonl, where the run kept one: a line for each training dialogue, in the same order."""
        name = "scores.jsonl"
        self.counts["totals"] = sum(len(rows) for rows in self.played.values())
        if not (self.folder / name).exists():
            return
        lines, dialogues = list(recorded_lines(self.folder, name)), self.played.get(TRAJECTORIES, [])
        if len(lines) != len(dialogues):
            raise Problem(name, None, f"holds {len(lines)} scores for {len(dialogues)} dialogues")
        scores, assigner = iter(lines), credit_assigner(self.config)
        for step, rows in self._steps().items():
            credit = _computed(TRAJECTORIES, lambda rows=rows: credit_of(rows, self.config))
            for row, turns in zip(rows, credit.turns, strict=True):
                number, line = next(scores)
                parts = [part.model_dump(mode="json") for part in row.score.parts]
                per_turn = None if row.score.per_turn is None else list(row.score.per_turn)
                expected = {"dialogue_id": row.trajectory.dialogue_id, "value": row.total}
                optional = {"per_turn": per_turn, "step": step, "parts": parts, **assigner.line(turns)}
                expected |= {key: value for key, value in optional.items() if line.get(key) is not None}
                _compare({key: line.get(key) for key in expected}, expected, name, number)

    def _check_metrics(self) -> None:
        name, steps = "metrics.jsonl", self._steps()
        lines = list(recorded_lines(self.folder, name)) if (self.folder / name).exists() else []
        if [line.get("step") for _, line in lines] != list(steps):
            raise Problem(name, None, f"tells of {len(lines)} steps, the dialogues of {TRAJECTORIES} of {len(steps)}")
        history: list[Counts] = []
        curriculum = _computed(name, lambda: self._curriculum(lines[0][1])) if lines else None
        for number, line in lines:
            rows = steps[line["step"]]
            expected = _computed(name, lambda line=line, rows=rows: step_numbers(rows, self.config, history))
            history.append(counts_of(expected))
            if curriculum:
                outcomes = [Outcome.of(row.trajectory) for row in rows]
                expected |= _computed(TRAJECTORIES, lambda line=line, o=outcomes: curriculum.learn(line["step"], o))
            shared = [key for key in expected if key in line or key == CURRICULUM]
            _compare({key: line.get(key) for key in shared}, {key: expected[key] for key in shared}, name, number)
        self.counts["metrics"] = len(lines)

    def _curriculum(self, line: dict[str, Any]) -> Curriculum | None:
        """What chose the cards and clients of the steps; None where every card was played in turn."""
        rules, split = self.config.curriculum, self.config.cards.train_split
        if rules.kind == "rotation":
            return None
        cards = [card for card in self.cards.values() if card.split == split]
        seed, trainer = self.config.run.seed, self.config.trainer
        groups, ahead = trainer.cards_per_step, trainer.max_staleness
        return recorded_curriculum(rules, cards, self.specs.values(), line, seed=seed, groups=groups, ahead=ahead)

    def _check_evaluations(self) -> None:
        """Every evaluation.json beside its dialogues, and every comparison with another evaluation of the run."""
        for path in sorted(self.folder.glob(f"evaluation/*/{SUMMARY}")):
            self.evaluations[path.parent.name] = self._evaluation(f"evaluation/{path.parent.name}")
        for path in sorted(self.folder.glob("evaluation/*/comparison*.json")):
            name = path.relative_to(self.folder).as_posix()
            other = COMPARISONS.get((path.parent.name, path.name), BASE if path.name == COMPARISON else None)
            if other is None or other not in self.evaluations:
                raise Problem(name, None, f"compares with evaluation/{other or '?'}, which is not there")
            self.comparisons[path.parent.name, path.name] = self._comparison(path.parent.name, name, other)
        self.counts["evaluation"] = len(self.evaluations) + len(self.comparisons)

    def _comparison(self, side: str, name: str, other: str) -> Comparison:
        before, after = (self._trajectories(f"evaluation/{one}") for one in (other, side))
        settings, cards = self.evaluations[other].settings, list(self.cards.values())
        comparison = _computed(name, lambda: compare(before, after, cards, settings))
        self._same_file(name, comparison)
        return comparison

    def _evaluation(self, folder: str) -> Evaluation:
        name, trajectories = f"{folder}/{SUMMARY}", self._trajectories(folder)
        settings = parsed(Evaluation, recorded_json(self.folder, name), name).settings
        evaluation = _computed(name, lambda: summarise(trajectories, list(self.cards.values()), settings))
        self._same_file(name, evaluation)
        if evaluation.dialogues != evaluation.cards * len(settings.seeds):
            raise Problem(name, self._line(name, ("dialogues",)), "not every card was played with every seed")
        spec = self.specs[evaluation.spec_hash]
        if (settings.success_at, settings.failure_below) != (spec.success_at, spec.failure_below):
            line = self._line(name, ("settings", "success_at"))
            raise Problem(name, line, f"success_at and failure_below are not those of {spec.name}")
        language = f"{folder}/{LANGUAGE}"
        if (self.folder / language).exists():
            measures = _computed(language, lambda: measure_language(trajectories, spec, settings.resampling))
            self._same_file(language, measures, needs_model=("perplexity",))
        return evaluation

    def _check_summary(self) -> None:
        name = "summary.json"
        if not (self.folder / name).exists():
            return
        needed = COMPARISONS if self.config.warm_start.data else [(TUNED, COMPARISON)]
        if missing := [key for key in needed if key not in self.comparisons]:
            raise Problem(name, None, f"sums up evaluation/{'/'.join(missing[0])}, which is not there")
        names = {BASE, TUNED, *(folder for folder, _ in needed)}
        sides = {side: one for side, one in self.evaluations.items() if side in names}
        expected = summary_numbers(sides, self.comparisons)
        recorded = recorded_json(self.folder, name)
        self._same(name, {key: recorded.get(key) for key in expected}, expected)
        self.counts["summary"] = 1

    def _trajectories(self, folder: str) -> list[Trajectory]:
        return [row.trajectory for row in self.played.get(f"{folder}/{TRAJECTORIES}", [])]

    def _same_file(self, name: str, expected: Record, needs_model: Sequence[str] = ()) -> None:
        """The JSON file ``name`` holds ``expected``, but for the top keys that only a model could compute."""
        both = [recorded_json(self.folder, name), expected.model_dump(mode="json")]
        self._same(name, *({key: value for key, value in side.items() if key not in needs_model} for side in both))

    def _same(self, name: str, recorded: dict[str, Any], expected: dict[str, Any]) -> None:
        if found := first_difference(recorded, expected, TOLERANCE):
            raise Problem(name, self._line(name, found[0]), _told(found))

    def _line(self, name: str, keys: Sequence[str | int]) -> int | None:
        return line_of((self.folder / name).read_text(encoding="utf-8"), keys)


def _compare(recorded: dict[str, Any], expected: dict[str, Any], name: str, line: int) -> None:
    if found := first_difference(recorded, expected, TOLERANCE):
        raise Problem(name, line, _told(found))


def _told(found: tuple[Sequence[str | int], Any, Any]) -> str:
    keys, recorded, expected = found
    return f"{'.'.join(map(str, keys))} is recorded as {shown(recorded)}, computed again it is {shown(expected)}"


def _computed(name: str, compute: Callable[[], T]) -> T:
    try:
        return compute()
    except (InputError, KeyError, ValueError) as error:
        raise Problem(name, None, f"can't be computed again: {error}") from error
