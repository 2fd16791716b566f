"""A rubric compared pairwise: shares of a group in the totals, gates and failures beside them, and the record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from judged import REPLIES, Says, chosen, dialogue, rubric

from envs.errors import InputError
from envs.models.model_client import Ask, ModelClient
from envs.trajectory import Score, Stop, Trajectory
from rewards.certificate import KEY_VARIABLE, Certificate, Data
from rewards.certificate import Subject as CertifiedJudge
from rewards.certify import Settings, audit
from rewards.judge import Judge
from rewards.judge_prompts import Mode
from rewards.judgments import Comparison, JudgeRules, judgment_line, read_comparisons
from rewards.pairwise import AskedComparisons, PairwiseRubric, RecordedComparisons
from rewards.ratings import Columns, read_ratings
from trainers.config import RunConfig
from trainers.credit import GroupDecoupled
from trainers.reward_config import Gates
from trainers.run_numbers import counts_of, read_history, reward_numbers, switch_rule
from trainers.scoring import Scoring, check_rewards, language_of, score_row
from trainers.watch import Alarm, Watch
from trainers.watch_rules import load_rules
from trainers.watching import Watcher

TWO = rubric()  # warmth counts 1, sense counts 3
JUDGE = Judge(TWO, JudgeRules(attempts=1))
WEIGHTS = {"warmth": 1.0, "sense": 3.0}
NAME = "rubric-two"
HUMAN = "I am a real person, not a machine, and I went through exactly this when my own mother died last year."
SHORT, MIDDLE, LONG = (" ".join(REPLIES[0].split()[:words]) for words in (3, 5, 8))
FAILED = {"stop": Stop.ERROR, "error": "RunError: the server is gone"}


class Rated:
    """A rating that is the same for every dialogue."""

    name = NAME

    async def score(self, trajectory: Trajectory) -> Score:
        return Score(name=NAME, value=0.5, evidence="3 for all")


class Steady:
    """A reward of another kind."""

    name = "steady"

    async def score(self, trajectory: Trajectory) -> Score:
        return Score(name="steady", value=0.8, evidence="steady")


def longer_wins(ask: Ask) -> str:
    """The longer talk is better on warmth; on sense the one that is shown first."""
    talks = ask.messages[1].content.split("The second talk, oldest message first:")
    first, second = (
        next(text for text in sorted([SHORT, MIDDLE, LONG, HUMAN], key=len, reverse=True) if text in talk)
        for talk in talks
    )
    return chosen("first" if len(first) > len(second) else "second", "first", first, second)


def pairs(model: ModelClient, kept: list[Comparison] | None = None) -> PairwiseRubric:
    found = kept if kept is not None else []
    return PairwiseRubric(NAME, WEIGHTS, AskedComparisons(JUDGE, lambda: [model], language_of, found.append))


def compared(
    talks: list[Trajectory], by: PairwiseRubric, *gates: str, weight: float = 1.0, group: int | None = None
) -> list[Score]:
    scoring = Scoring(((Steady(), 1.0), (Rated(), weight)), Gates.model_validate({"names": gates}), {NAME: by})

    async def scores() -> list[Score]:
        rated = [await score_row(talk, scoring) for talk in talks]
        return await scoring.compared(talks, rated, group or len(talks), {NAME})

    return asyncio.run(scores())


def part(score: Score, name: str) -> Score:
    return next(part for part in score.parts if part.name == name)


def three() -> list[Trajectory]:
    return [dialogue(text, seed=seed) for seed, text in enumerate((MIDDLE, LONG, SHORT))]


# Shares in the total


def test_the_share_of_the_others_that_a_dialogue_beats_counts_in_the_place_of_its_rating() -> None:
    scores = compared(three(), pairs(Says(longer_wins)))
    # Sense is a tie of two places. Warmth: the longest beats both, the middle one of two, the shortest none.
    shares = [(0.5 + 3 * 0.5) / 4, (1 + 3 * 0.5) / 4, (0 + 3 * 0.5) / 4]
    assert [part(score, NAME).value for score in scores] == pytest.approx(shares)
    assert [score.value for score in scores] == pytest.approx([(0.8 + share) / 2 for share in shares])


def test_the_rating_stays_beside_it_without_weight_and_so_does_the_total_that_it_gave() -> None:
    score = compared(three(), pairs(Says(longer_wins)))[1]
    assert [part.name for part in score.parts] == ["steady", NAME, f"{NAME}-absolute", "total-absolute"]
    assert part(score, NAME).evidence == "beats 0.625 of 2 others; rated 0.5"
    assert (part(score, f"{NAME}-absolute").value, part(score, f"{NAME}-absolute").evidence) == (0.5, "3 for all")
    assert part(score, "total-absolute").value == pytest.approx((0.8 + 0.5) / 2)
    assert (
        GroupDecoupled(3, weights=(1.0, 1.0)).of(compared(three(), pairs(Says(longer_wins))), [1] * 3).advantages[2] < 0
    )


def test_groups_are_compared_within_themselves() -> None:
    asked = Says(longer_wins)
    scores = compared([*three()[:2], *three()[1:]], pairs(asked), group=2)
    assert len(asked.asked) == 2 * 2  # a pair in each group, in both orders
    wins = [(0 + 3 * 0.5) / 4, (1 + 3 * 0.5) / 4]
    assert [part(score, NAME).value for score in scores] == pytest.approx([*wins, *reversed(wins)])


def test_a_judge_that_ties_every_pair_gives_every_dialogue_a_half() -> None:
    same = Says(lambda ask: chosen("tie", "tie", "x", "y"))
    talks = [dialogue("...", seed=seed) for seed in range(3)]  # nothing that could be quoted, and nothing won
    assert {part(score, NAME).value for score in compared(talks, pairs(same))} == {0.5}


# Gates


def test_a_closed_gate_voids_the_share_of_a_dialogue_that_won() -> None:
    talks = [dialogue(HUMAN, seed=0), *three()[1:]]
    won, second, _ = compared(talks, pairs(Says(longer_wins)), "false_humanity")
    share = part(won, NAME)
    assert share.value == 0.0 and "void (0.625): false_humanity closed at turn 1" in share.evidence
    assert won.value == 0.0  # the other reward is void too
    assert part(won, f"{NAME}-absolute").value == 0.0 and part(won, "total-absolute").value == 0.0
    assert part(second, NAME).value == pytest.approx((0.5 + 3 * 0.5) / 4)  # it was beaten all the same


def test_a_reply_that_a_gate_can_not_read_leaves_no_total_after_the_switch_either() -> None:
    foreign = "Das klingt nach einer schweren Woche, und ich höre gern zu, wenn du mehr davon erzählen magst."

    def answer(ask: Ask) -> str:
        return chosen("tie", "tie", *(foreign if foreign in talk else LONG for talk in halves(ask)))

    blind, seen = compared([dialogue(foreign), dialogue(LONG, seed=1)], pairs(Says(answer)), "false_humanity")
    assert blind.value is None and part(blind, NAME).value == 0.5 and part(blind, "total-absolute").value is None
    assert seen.value == pytest.approx((0.8 + 0.5) / 2)


def halves(ask: Ask) -> list[str]:
    return ask.messages[1].content.split("The second talk, oldest message first:")


# What is missing


def test_a_failed_dialogue_takes_no_part_and_the_others_are_compared_without_it() -> None:
    talks = three()
    talks[0] = talks[0].model_copy(update=FAILED)
    asked = Says(longer_wins)
    failed, high, low = compared(talks, pairs(asked))
    assert (failed.value, failed.parts) == (None, ()) and len(asked.asked) == 2
    assert (part(high, NAME).value, part(low, NAME).value) == (pytest.approx(2.5 / 4), pytest.approx(1.5 / 4))


def test_who_is_alone_in_the_group_has_no_share() -> None:
    talks = [three()[0], three()[1].model_copy(update=FAILED)]
    alone = compared(talks, pairs(Says(longer_wins)))[0]
    assert alone.value is None and "no other dialogue to compare with" in part(alone, NAME).evidence
    assert part(alone, f"{NAME}-absolute").value == 0.5


def test_a_pair_that_could_not_be_compared_leaves_both_without_a_total_and_says_why() -> None:
    def answer(ask: Ask) -> str | None:
        return None if MIDDLE + "\n" in ask.messages[1].content and LONG in halves(ask)[0] else longer_wins(ask)

    scores = compared(three(), pairs(Says(answer)))  # type: ignore[arg-type]
    assert [score.value is None for score in scores] == [True, True, False]
    assert f"not compared with {three()[1].dialogue_id} (no_answer)" in part(scores[0], NAME).evidence
    unweighted = compared(three(), pairs(Says(answer)), weight=0.0)  # type: ignore[arg-type]
    assert [score.value for score in unweighted] == [0.8] * 3  # only logged: the totals stand


def test_a_source_that_breaks_is_data_and_nothing_is_raised() -> None:
    async def broken(first: Trajectory, second: Trajectory) -> Comparison:
        raise RuntimeError("no such judge")

    scores = compared(three(), PairwiseRubric(NAME, WEIGHTS, broken))
    assert [score.value for score in scores] == [None] * 3 and "(no comparison)" in part(scores[0], NAME).evidence


# The record


def recorded(lines: list[Comparison], path: Path, models: tuple[str, ...] = ("says",)) -> PairwiseRubric:
    path.write_text("".join(judgment_line(one) + "\n" for one in lines), encoding="utf-8")
    return PairwiseRubric(NAME, WEIGHTS, RecordedComparisons(read_comparisons(path), JUDGE, models, language_of))


def test_the_record_gives_the_same_scores_without_a_model(tmp_path: Path) -> None:
    kept: list[Comparison] = []
    scores = compared(three(), pairs(Says(longer_wins), kept))
    assert len(kept) == 3
    assert compared(three(), recorded(kept, tmp_path / "pairs.jsonl")) == scores


@pytest.mark.parametrize("change", ["verdicts", "rules", "language", "models", "gone"])
def test_a_comparison_that_was_changed_counts_for_nobody(change: str, tmp_path: Path) -> None:
    kept: list[Comparison] = []
    compared(three(), pairs(Says(longer_wins), kept))
    other: dict[str, Any] = {
        "verdicts": kept[-1].verdicts,
        "rules": JudgeRules(attempts=2),
        "language": "zh",
        "models": ("another",),
    }
    forged = [] if change == "gone" else [kept[0].model_copy(update={change: other[change]})]
    if change == "verdicts":
        assert kept[0].verdicts != kept[-1].verdicts
    scores = compared(three(), recorded([*forged, *kept[1:]], tmp_path / "pairs.jsonl"))
    hurt = {kept[0].dialogue_ids[0], kept[0].dialogue_ids[1]}
    missing = [talk.dialogue_id in hurt for talk in three()]
    assert [score.value is None for score in scores] == missing and sum(missing) == 2


def test_a_pair_that_is_recorded_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    kept: list[Comparison] = []
    compared(three(), pairs(Says(longer_wins), kept))
    with pytest.raises(InputError, match=r"pairs\.jsonl:4: compares .* a second time"):
        recorded([*kept, kept[0]], tmp_path / "pairs.jsonl")


# The log, and the config


def test_the_counts_in_the_log_say_on_resume_what_they_said_before(tmp_path: Path) -> None:
    history, rule = [], switch_rule(RunConfig.model_validate({"dead_signals": {"window": 2}}))
    lines, scores = [], compared(three(), pairs(Says(longer_wins)))
    flat = [
        Score(name="total", value=0.5, parts=(Score(name=NAME, value=0.5), Score(name="x", value=v))) for v in (0, 1)
    ]
    for step in (flat, flat, scores[:2]):
        lines.append({"rewards": reward_numbers(step, 2, history, rule)})
        history.append(counts_of(lines[-1]))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert read_history(tmp_path / "metrics.jsonl") == history and read_history(tmp_path / "none.jsonl") == []
    assert [line["rewards"][NAME]["dead_rate_window"] for line in lines] == [1.0, 1.0, 0.5]


def test_the_watch_reads_the_total_by_ratings_since_win_shares_have_no_trend(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Hears(Watch):
        def step(self, line: Mapping[str, Any]) -> list[Alarm]:
            heard.append(line["reward"])
            return super().step(line)

    async def look(adapter: str | None) -> dict[str, float | None]:
        return {}

    watcher = Watcher(Hears(load_rules("watch-v1")), 1, look, (), (), tmp_path)
    compared = {"total-absolute": {"mean": 0.7}}
    lines = [{"step": 0, "reward": 0.6, "rewards": {}}, {"step": 1, "reward": 0.5, "rewards": compared}]
    for line in [*lines, {"step": 2, "reward": 0.5, "rewards": {"total-absolute": {"mean": None}}}]:
        watcher.hear(line)
    assert heard == [0.6, 0.7, None]


KARDIA = {"rubric": "kardia", "models": [{"endpoint": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}]}
DEAD = {"pairwise": ["rubric-kardia"]}


def test_several_training_processes_can_not_compare_whole_groups() -> None:
    devices = {"training": [0, 1], "engine": [0, 1]}
    engine = {"port": 8100, "tensor_parallel": 2}
    changes = {"judges": [KARDIA], "dead_signals": DEAD, "devices": devices, "engine": engine}
    with pytest.raises(InputError, match="train on one device, or remove it"):
        check_rewards(RunConfig.model_validate(changes | {"trainer": {"micro_batch": 1}}))


def test_a_rubric_about_single_replies_can_not_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "turn.yaml"
    path.write_text(yaml.safe_dump(rubric("turn").model_dump(mode="python") | {"sources": ["tests"]}), encoding="utf-8")
    changes = {"judges": [KARDIA | {"rubric": str(path)}], "dead_signals": {"pairwise": [NAME]}}
    with pytest.raises(InputError, match="rates single replies"):
        check_rewards(RunConfig.model_validate(changes))


def certificate(folder: Path, prompt_hash: str) -> Path:
    """Of a judge ``m`` that rates as people do on both axes, asked by the prompt with this hash."""
    lines, draw = ["conversation_id,responder,warmth,sense"], np.random.default_rng(0)
    for at in range(240):
        warmth, sense = np.clip(np.round(draw.normal(size=2) + at % 6 / 2 + 2), 1, 5).astype(int)
        lines.append(f"{at // 6},r{at % 6},{warmth},{sense}")
    for name in ("human.csv", "judge.csv"):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    ratings = read_ratings(folder / "human.csv", folder / "judge.csv", Columns())
    subject = CertifiedJudge(name="m", model="m", prompt_hash=prompt_hash, rubric=TWO.name, rubric_hash=TWO.hash)
    data = Data(human="human.csv", human_sha256="0" * 64, judge="judge.csv", judge_sha256="1" * 64)
    signed = Certificate.sign(subject, data, audit(ratings, Settings(resamples=100, low=1, high=5)))
    (folder / "certificate.json").write_text(signed.model_dump_json(), encoding="utf-8")
    return folder / "certificate.json"


def test_a_weight_needs_a_certificate_for_the_prompt_that_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    data = TWO.model_dump(mode="python") | {"sources": ["made for tests"]}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(data | {"languages": ["en"]}), encoding="utf-8")

    def check(mode: Mode, weight: float = 1.0, uncertified: bool = False) -> None:
        path = str(certificate(tmp_path, JUDGE.prompt_hash("en", mode)))
        judge = KARDIA | {"rubric": str(tmp_path / "two.yaml"), "certificates": [path], "uncertified": uncertified}
        rewards = [{"name": "emotion"}, {"name": NAME, "weight": weight}]
        dead = {"pairwise": [NAME]}
        changes = {"judges": [judge], "rewards": rewards, "dead_signals": dead, "cards": {"languages": ["en"]}}
        check_rewards(RunConfig.model_validate(changes))

    with pytest.raises(InputError, match=r"no certificate covers the prompt that compares .* set uncertified: true"):
        check("rate")
    check("compare")
    check("rate", weight=0.0)
    check("rate", uncertified=True)


def test_what_a_switched_rubric_keeps_beside_it_is_no_other_rubric_s_name(tmp_path: Path) -> None:
    judges = [KARDIA]
    for suffix in ("-absolute", "-pairs"):
        data = TWO.model_dump(mode="python") | {"sources": ["made for tests"], "name": f"kardia{suffix}"}
        path = tmp_path / f"{suffix[1:]}.yaml"
        path.write_text(yaml.safe_dump(data | {"languages": ["en"]}), encoding="utf-8")
        with pytest.raises(InputError, match=f"kardia{suffix}' is what rubric-kardia keeps beside it"):
            check_rewards(
                RunConfig.model_validate({"judges": [*judges, KARDIA | {"rubric": str(path)}], "dead_signals": DEAD})
            )
