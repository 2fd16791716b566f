"""A dialogue's total: the config's rewards by weight, less what a closed gate voids, from models or from the record."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.card_set import load_cards
from envs.cards import Language, PersonaCard
from envs.errors import InputError
from envs.models.model_client import ModelClient
from envs.trajectory import Score, Stop, Trajectory
from rewards.certificate import Certificate
from rewards.combine import in_groups
from rewards.emotion_label import EmotionLabelReward, card_label
from rewards.format import Form, broken_form
from rewards.gates import check_gates
from rewards.judge import Judge
from rewards.judgments import Comparison, JudgeRules, Judgment, judgment_line, read_comparisons, read_judgments
from rewards.pairwise import AskedComparisons, PairSource, PairwiseRubric, RecordedComparisons
from rewards.registry import REWARDS
from rewards.reward import Reward, weighted_total, weighted_turns
from rewards.rubric import Rubric, load_rubric, rubric_file
from rewards.rubric_reward import AskedJudgments, RecordedJudgments, RubricReward, Source, Subject, standing_of
from trainers.config import RunConfig
from trainers.credit import CHANGE, EMOTION
from trainers.gate_reading import GateReader, check_reader, recorded_reader
from trainers.reward_config import Gates, JudgeTerm
from trainers.run_files import append_lines
from trainers.voiding import Findings, counted, form_score, gate_score

RUBRIC = "rubric-"
JUDGMENTS = "judgments"  # folder of a run: one file a rubric, one line a dialogue; NAME-pairs: one line a pair
ABSOLUTE, PAIRS = "-absolute", "-pairs"
TOTAL_ABSOLUTE = "total" + ABSOLUTE
Views = Callable[[JudgeTerm], tuple[Sequence[str], Callable[[], Sequence[ModelClient]]]]


@dataclass(frozen=True)
class Scoring:
    """Scores dialogues: every reward, the gates, and the total, which is None where a weighted part is.

    ``pairs``: the rewards that may be compared pairwise, by name; ``reader``: who reads gates after the patterns.
    ``form``: the form that every reply has to keep, or nothing counts.
    """

    terms: tuple[tuple[Reward, float], ...]
    gates: Gates
    pairs: Mapping[str, PairwiseRubric] = field(default_factory=dict)
    reader: GateReader | None = None
    form: Form | None = None

    async def __call__(self, trajectory: Trajectory) -> Score:
        """The score named "total", with its parts as they count."""
        parts = [await reward.score(trajectory) for reward, _ in self.terms]
        found = await self._gated(trajectory)
        parts = [counted(part, trajectory, found) for part in parts]
        if self.gates.all:
            parts.append(gate_score(found))
        if self.form:
            parts.append(form_score(found))
        return self._total(parts, found.blind, len(trajectory.turns))

    async def compared(
        self, trajectories: Sequence[Trajectory], scores: Sequence[Score], group_size: int, names: Collection[str]
    ) -> list[Score]:
        """The scores (B,) of whole groups after the rewards in ``names`` were compared pairwise within each group.

        A part in ``names`` becomes the share of the group's others that the dialogue beats, nothing behind a closed
        gate. What it was before follows as a part of its own without weight, NAME-absolute, and the total as it was,
        total-absolute: win shares have the same mean in every group, so only these show a trend. A dialogue that failed
        or was not scored takes no part. Raises ValueError when B is no multiple of the group size.
        """
        chosen = [reward for name, reward in self.pairs.items() if name in names]
        if not chosen:
            return list(scores)
        found: list[Score] = []
        # Group by group, so that a comparison's deadline isn't spent in waiting for those of other groups.
        for group in in_groups(list(zip(trajectories, scores, strict=True)), group_size):
            present = [place for place, pair in enumerate(group) if pair[0].stop is not Stop.ERROR and pair[1].parts]
            columns = [await reward.scores([group[place][0] for place in present]) for reward in chosen]
            shares = dict(zip(present, zip(*columns, strict=True), strict=True))
            found += [
                await self._switched(*pair, shares[place]) if place in shares else pair[1]
                for place, pair in enumerate(group)
            ]
        return found

    async def _switched(self, trajectory: Trajectory, old: Score, shares: Sequence[Score]) -> Score:
        """A row's total with ``shares`` in the place of the parts of their names."""
        found, by_name, absolutes = await self._gated(trajectory), {share.name: share for share in shares}, []
        parts: list[Score] = []
        for part in old.parts:
            if share := by_name.get(part.name):
                absolutes.append(part.model_copy(update={"name": part.name + ABSOLUTE, "per_turn": None}))
                rated = "None" if part.value is None else f"{part.value:g}"
                share = share.model_copy(update={"evidence": f"{share.evidence}; rated {rated}"})
                part = counted(share, trajectory, found)
            parts.append(part)
        absolutes.append(Score(name=TOTAL_ABSOLUTE, value=old.value, evidence="the total by ratings alone"))
        return self._total([*parts, *absolutes], found.blind, len(trajectory.turns))

    async def _gated(self, trajectory: Trajectory) -> Findings:
        language = language_of(trajectory)
        verdicts = check_gates(trajectory, language, self.gates.all) if self.gates.all else []
        if self.reader:
            verdicts = await self.reader(trajectory, language, verdicts)
        broken = broken_form(trajectory, self.form) if self.form else {}
        return Findings(verdicts, [verdict for verdict in verdicts if verdict.gate in self.gates.names], broken)

    def _total(self, parts: Sequence[Score], blind: bool, turns: int) -> Score:
        weights = [weight for _, weight in self.terms]
        weights += [0.0] * (len(parts) - len(weights))
        return Score(
            name="total",
            value=None if blind else weighted_total(parts, weights),
            evidence="; ".join(f"{part.name}: {part.evidence}" for part in parts),
            per_turn=None if blind else weighted_turns(parts, weights, turns),
            parts=tuple(parts) if len(parts) > 1 or self.pairs else (),
        )


def language_of(trajectory: Trajectory) -> Language:
    """The language of a dialogue: its card's id begins with it."""
    return "zh" if trajectory.card_id.startswith("zh-") else "en"


def judges_of(config: RunConfig, folder: Path | None = None) -> dict[str, tuple[JudgeTerm, Judge]]:
    """The config's judges by the name of their reward; ``folder``: a run, whose own copies of the rubrics are read.

    Raises InputError for a rubric that is wrong or named twice.
    """
    found: dict[str, tuple[JudgeTerm, Judge]] = {}
    for place, term in enumerate(config.judges):
        copy = folder / rubric_copy(place) if folder else None
        rubric = load_rubric(str(copy) if copy and copy.exists() else term.rubric)
        name = RUBRIC + rubric.name
        if name in found:
            raise InputError(f"judges.{place}.rubric: {rubric.name} is named twice; keep one and add its models there")
        found[name] = term, Judge(rubric, _rules(term, config.run.seed))
    return found


def _rules(term: JudgeTerm, seed: int) -> JudgeRules:
    try:
        return JudgeRules(
            seed=seed,
            samples=term.samples,
            attempts=term.attempts,
            temperature=term.temperature,
            max_tokens=term.max_tokens,
            longest_quote=term.longest_text,
            longest_reason=term.longest_text,
            evidence=term.evidence,
        )
    except ValueError as error:
        raise InputError(f"judges: {term.rubric}: {error}") from error


def check_rewards(config: RunConfig) -> None:
    """Raises InputError for a reward, judge or certificate that isn't there, and one that can carry no weight."""
    judges = judges_of(config)
    check_reader(config, [judge.rubric.name for _, judge in judges.values()])
    known = [*REWARDS, *judges]
    for term in config.rewards:
        if term.name not in known:
            remedy = "; a judge's rubric stands under judges" if term.name.startswith(RUBRIC) else ""
            raise InputError(f"rewards: there is no reward named {term.name!r}; known: {', '.join(known)}{remedy}")
    weights = {term.name: term.weight for term in config.rewards}
    for name, (term, judge) in judges.items():
        certificates(term.certificates)
        carries = weights.get(name) or name == config.trainer.attribution
        if carries and not term.certificates and not term.uncertified:
            raise InputError(
                f"judges: {judge.rubric.name} has a weight under rewards and no certificate, or attributes without: "
                "nothing says that this judge agrees with people. Certify it (attune judge certify) and name the "
                "file under certificates; or give it weight 0, which logs it; or set uncertified: true, which the "
                "model card repeats"
            )
    if (watching := config.watch.judge) and (watching not in judges or weights.get(watching)):
        raise InputError(f"watch.judge: {watching!r} must be a judge under judges (rubric-NAME) that carries no weight")
    _check_pairwise(config, judges, weights)
    _check_attribution(config, judges)


def _check_attribution(config: RunConfig, judges: Mapping[str, tuple[JudgeTerm, Judge]]) -> None:
    """Raises InputError where credit by utterance has nobody to say what each reply's share is."""
    source = config.trainer.attribution
    if config.trainer.credit != "utterance":
        return
    if source == CHANGE and EMOTION not in [term.name for term in config.rewards]:
        raise InputError(
            "trainer.attribution: change reads the emotion's changes; add emotion to rewards (weight 0 will do)"
        )
    if source != CHANGE and (source not in judges or judges[source][1].rubric.scope != "turn"):
        raise InputError(
            f"trainer.attribution: {source!r} must be `{CHANGE}` or a judge under judges (rubric-NAME) that rates "
            "single replies, such as rubric-attribution"
        )


def _check_pairwise(
    config: RunConfig, judges: Mapping[str, tuple[JudgeTerm, Judge]], weights: Mapping[str, float]
) -> None:
    """Raises InputError for a reward that can't be compared pairwise, with the remedy."""
    named = config.dead_signals.pairwise
    if named and len(config.devices.training) > 1:
        raise InputError(
            "dead_signals.pairwise: compares whole groups, which several training processes (devices.training) split "
            "among them; train on one device, or remove it"
        )
    for name in named:
        if name not in judges:
            raise InputError(f"dead_signals.pairwise: {name!r} is no judge under judges (rubric-NAME)")
        term, judge = judges[name]
        if judge.rubric.scope != "dialogue":
            raise InputError(f"dead_signals.pairwise: {name} rates single replies, and only dialogues can be compared")
        if taken := [name + suffix for suffix in (ABSOLUTE, PAIRS) if name + suffix in judges]:
            raise InputError(f"dead_signals.pairwise: {taken[0]!r} is what {name} keeps beside it; rename that rubric")
        known = certificates(term.certificates)
        # By the certificates' own models: which model a judge turns out to be is known when it is reached.
        hashes = [judge.prompt_hash(language, "compare") for language in config.cards.languages]
        by = [Subject(str(one.judge.model), prompt) for one in known for prompt in hashes]
        if weights.get(name) and standing_of(judge.rubric, by, known, uncertified=term.uncertified).read_only:
            raise InputError(
                f"dead_signals.pairwise: {name} has a weight, and no certificate covers the prompt that compares (hash "
                f"{hashes[0]}): one for ratings says nothing of comparisons. Remove it "
                "from pairwise, or set uncertified: true, which the model card repeats"
            )


def certificates(paths: Sequence[Path]) -> list[Certificate]:
    """Certificates, their signatures checked. Raises InputError."""
    return [Certificate.load(path) for path in paths]


def rubric_copy(place: int) -> Path:
    """Where a run keeps the rubric of its judge at ``place``."""
    return Path("judges") / f"{place}-rubric.yaml"


def certificate_copy(place: int, number: int) -> Path:
    """Where a run keeps a certificate of its judge at ``place``."""
    return Path("judges") / f"{place}-certificate-{number}.json"


def judge_files(config: RunConfig) -> dict[str, str]:
    """The rubrics and certificates that a run keeps, {path in its folder: text}."""
    files: dict[str, str] = {}
    for place, term in enumerate(config.judges):
        files[rubric_copy(place).as_posix()] = rubric_file(term.rubric).read_text(encoding="utf-8")
        for number, path in enumerate(term.certificates):
            files[certificate_copy(place, number).as_posix()] = path.read_text(encoding="utf-8")
    return files


def live_scoring(config: RunConfig, views: Views, folder: Path | None, reader: GateReader | None = None) -> Scoring:
    """Scoring that asks judges. ``views``: a judge's model names, and what makes views of them for one dialogue.

    A judgment, or a comparison, is written below ``folder`` before it is scored; None: it is not kept.
    """
    rewards: dict[str, Reward] = {}
    pairs: dict[str, PairwiseRubric] = {}
    for name, (term, judge) in judges_of(config).items():
        names, models = views(term)
        keep = _keeper(judgments_file(folder, judge.rubric) if folder else None)
        find = AskedJudgments(judge, lambda trajectory, models=models: models(), language_of, keep)
        rewards[name] = _rubric_reward(config, term, judge, find, names, term.certificates)
        if name in config.dead_signals.pairwise:
            keep = _keeper(comparisons_file(folder, judge.rubric) if folder else None)
            asked = AskedComparisons(judge, models, language_of, keep)
            pairs[name] = _pairwise(config, name, term, judge, asked, names, term.certificates)
    labelled = load_cards(config.cards.paths) if _uses_labels(config) else []
    return Scoring(_terms(config, rewards, labelled), config.gates, pairs, reader, _required(config))


def _keeper(file: Path | None) -> Callable[[Judgment | Comparison], None]:
    def keep(judged: Judgment | Comparison) -> None:
        if file:
            file.parent.mkdir(exist_ok=True)
            append_lines(file, [judgment_line(judged)])

    return keep


def watching_judge(config: RunConfig, views: Views) -> Reward:
    """The watch's judge, which gives no reward: its axes count by the rubric's own weights, certified or not."""
    term, judge = judges_of(config)[str(config.watch.judge)]
    names, models = views(term)
    find = AskedJudgments(judge, lambda trajectory: models(), language_of, lambda judgment: None)
    return RubricReward(judge, find, names, config.cards.languages, uncertified=True)


def recorded_scoring(config: RunConfig, folder: Path) -> Scoring:
    """Scoring from what ``folder`` holds: judgments are read, and made again from their raw answers. No model."""
    rewards: dict[str, Reward] = {}
    pairs: dict[str, PairwiseRubric] = {}
    for place, (name, (term, judge)) in enumerate(judges_of(config, folder).items()):
        file, compared = judgments_file(folder, judge.rubric), comparisons_file(folder, judge.rubric)
        judgments: Mapping[str, Judgment] = read_judgments(file) if file.exists() else {}
        names = sorted({model for judgment in judgments.values() for model in judgment.models})
        find = RecordedJudgments(judgments, judge.rubric)
        kept = [folder / certificate_copy(place, number) for number in range(len(term.certificates))]
        rewards[name] = _rubric_reward(config, term, judge, find, names, kept)
        if name in config.dead_signals.pairwise:
            comparisons = read_comparisons(compared) if compared.exists() else {}
            recorded = RecordedComparisons(comparisons, judge, names, language_of)
            pairs[name] = _pairwise(config, name, term, judge, recorded, names, kept)
    reader = recorded_reader(config, folder)
    lines = (folder / "cards.jsonl").read_text(encoding="utf-8").splitlines() if _uses_labels(config) else []
    labelled = [PersonaCard.model_validate(json.loads(line)["card"]) for line in lines]
    return Scoring(_terms(config, rewards, labelled), config.gates, pairs, reader, _required(config))


def _uses_labels(config: RunConfig) -> bool:
    return any(term.name == EmotionLabelReward.name for term in config.rewards)


def check_labels(config: RunConfig, cards: Sequence[PersonaCard]) -> None:
    """Raises InputError where the emotion label has a weight and one of the training ``cards`` has no label."""
    weight = sum(term.weight for term in config.rewards if term.name == EmotionLabelReward.name)
    if weight and (bare := [card.id for card in cards if not card_label(card)]):
        raise InputError(
            f"rewards: emotion-label has a weight, and card {bare[0]} ({len(bare)} in all) has no label "
            "(notes.emotion); name cards that have one, such as attune cards import kardia makes, or give it weight 0"
        )


def _required(config: RunConfig) -> Form | None:
    """The form without which nothing counts."""
    form = config.policy.format
    return form if config.policy.format_required and form != "plain" else None


def judgments_file(folder: Path, rubric: Rubric) -> Path:
    """Where a run keeps the judgments by a rubric."""
    return folder / JUDGMENTS / f"{rubric.name}.jsonl"


def comparisons_file(folder: Path, rubric: Rubric) -> Path:
    """Where a run keeps the comparisons by a rubric."""
    return folder / JUDGMENTS / f"{rubric.name}{PAIRS}.jsonl"


def _pairwise(
    config: RunConfig,
    name: str,
    term: JudgeTerm,
    judge: Judge,
    find: PairSource,
    models: Sequence[str],
    paths: Sequence[Path],
) -> PairwiseRubric:
    """The rubric as a comparison; an axis counts where a certificate covers the prompt that compares."""
    asked = [Subject(model, judge.prompt_hash(one, "compare")) for model in models for one in config.cards.languages]
    standing = standing_of(judge.rubric, asked, certificates(paths), uncertified=term.uncertified)
    return PairwiseRubric(name, standing.weights, find)


def _rubric_reward(
    config: RunConfig, term: JudgeTerm, judge: Judge, find: Source, models: Sequence[str], paths: Sequence[Path]
) -> RubricReward:
    known = certificates(paths)
    return RubricReward(judge, find, models, config.cards.languages, known, uncertified=term.uncertified)


def _terms(
    config: RunConfig, rubrics: Mapping[str, Reward], labelled: Sequence[PersonaCard]
) -> tuple[tuple[Reward, float], ...]:
    """The rewards with their weights; a judge that is not named as a reward, and is not the watch's, is only logged.

    ``labelled``: the cards whose notes hold emotion labels.
    """
    if unknown := [term.name for term in config.rewards if term.name not in {*rubrics, *REWARDS}]:
        raise InputError(f"rewards: there is no reward named {unknown[0]!r}; known: {', '.join([*REWARDS, *rubrics])}")
    labels = {card.id: label for card in labelled if (label := card_label(card))}
    known = {**rubrics, EmotionLabelReward.name: EmotionLabelReward(labels)}
    terms = [(known.get(term.name) or REWARDS[term.name](), term.weight) for term in config.rewards]
    named = {*(term.name for term in config.rewards), config.watch.judge}
    return tuple([*terms, *((reward, 0.0) for name, reward in rubrics.items() if name not in named)])


async def score_row(trajectory: Trajectory, reward: Callable[[Trajectory], Awaitable[Score]]) -> Score:
    """The score of a dialogue; a failed one, and one whose scoring fails, has none."""
    if trajectory.stop is Stop.ERROR:
        return Score(name="total", value=None, evidence=f"the dialogue failed: {trajectory.error}")
    try:
        return await reward(trajectory)
    except Exception as error:  # what can't be scored is data, whatever made it fail
        return Score(name="total", value=None, evidence=f"scoring failed: {type(error).__name__}: {error}")
