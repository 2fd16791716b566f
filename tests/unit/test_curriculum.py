"""The curriculum: hand-worked weights, shares that hold, a floor, and choices that follow from the record alone."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import fsum
from pathlib import Path
from typing import Any

import pytest
from curriculum_run import HARSH, MILD, a_card, config_of, curriculum_of, make_curriculum_run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verification import edit, problem_of

from envs.cards import PersonaCard
from envs.errors import InputError, RunError
from trainers.client_models import training_specs
from trainers.config import RunConfig
from trainers.config_file import load_config
from trainers.curriculum import (
    CURRICULUM,
    Curriculum,
    Group,
    Outcome,
    Rates,
    Seen,
    Stratum,
    adaptive_weights,
    check_mixture,
    failure_rates,
    normalised,
)
from trainers.curriculum_config import Curriculum as Rules
from trainers.plan import Plan
from trainers.verification import verify_run

NEEDS, TEMPERAMENTS = ("listening", "real_advice", "deep_empathy"), ("passive", "avoidant")
PASSIVE, AVOIDANT = Stratum("listening", "passive", "s"), Stratum("listening", "avoidant", "s")
CARDS = [a_card(f"en-{need}-{t}-{n}", need, t) for need in NEEDS for t in TEMPERAMENTS for n in range(2)]
Fails = Callable[[PersonaCard, str], float]


def play(
    curriculum: Curriculum, steps: int, fails: Fails, cards: Sequence[PersonaCard] = CARDS, start: int = 0
) -> tuple[list[list[Group]], list[dict[str, Any]]]:
    """Play steps of four dialogues a group, which fail with probability ``fails``; each step's groups and its line."""
    by_id, dice, groups, lines = {card.id: card for card in cards}, random.Random(1), [], []
    for step in range(start, start + steps):
        chosen = curriculum.of(step)
        outcomes = [
            Outcome(card, spec, 0.0 if dice.random() < fails(by_id[card], spec) else 90.0)
            for card, spec in chosen
            for _ in range(4)
        ]
        groups.append(chosen)
        lines.append(curriculum.learn(step, outcomes)[CURRICULUM])
    return groups, lines


def test_a_failure_rate_is_shrunk_towards_what_strata_alike_say() -> None:
    # Over all: (3 + 1) / (8 + 2) = 2/5. Passive: (3 + 4/5) / 6 = 19/30; avoidant: (0 + 4/5) / 6 = 2/15. Need and spec
    # are the same in both and say nothing.
    rates = failure_rates({PASSIVE: Seen(3, 4), AVOIDANT: Seen(0, 4)}, prior=2)
    assert rates[PASSIVE] == pytest.approx((3 + 2 * 19 / 30) / 6)
    assert rates[AVOIDANT] == pytest.approx((0 + 2 * 2 / 15) / 6)


def test_a_stratum_that_was_never_played_is_judged_by_its_need_and_its_temperament() -> None:
    seen = {Stratum(need, t, "s"): Seen() for need in ("listening", "real_advice") for t in TEMPERAMENTS}
    seen[Stratum("listening", "passive", "s")] = Seen(4, 4)
    seen[Stratum("real_advice", "avoidant", "s")] = Seen(0, 4)
    rates = failure_rates(seen, prior=2)
    # 1/2 over all; 5/6 for the hard need and the hard temperament, 1/6 for the others.
    assert rates[Stratum("listening", "avoidant", "s")] == pytest.approx(0.5)
    # 1/2 + 1/3 + 1/3 is more than certain, so it counts as 0.99; with 4 of 4: (4 + 1.98) / 6.
    assert rates[Stratum("listening", "passive", "s")] == pytest.approx(5.98 / 6)
    assert rates[Stratum("real_advice", "avoidant", "s")] == pytest.approx(0.02 / 6)


def test_nothing_observed_is_a_failure_rate_of_a_half() -> None:
    assert set(failure_rates({PASSIVE: Seen(), AVOIDANT: Seen()}, prior=8).values()) == {0.5}


def test_adaptive_weights_by_hand() -> None:
    shares: Rates = {PASSIVE: 0.5, AVOIDANT: 0.5}
    hard = adaptive_weights(shares, {PASSIVE: 0.8, AVOIDANT: 0.2}, "hard", floor=0.5)
    assert hard == pytest.approx({PASSIVE: 0.25 + 0.5 * 0.8, AVOIDANT: 0.25 + 0.5 * 0.2})
    moderate = adaptive_weights(shares, {PASSIVE: 0.9, AVOIDANT: 0.5}, "moderate", floor=0.0)
    assert moderate == pytest.approx({PASSIVE: 0.36 / 1.36, AVOIDANT: 1 / 1.36})


def test_a_mixture_multiplies_how_often_a_card_is_played() -> None:
    cards = [a_card("en-a", temperament="passive"), *(a_card(f"en-{n}", temperament="avoidant") for n in "bc")]
    mixture = {"temperament": {"avoidant": 2, "passive": 1}, "spec": {HARSH.name: 3}}
    curriculum = curriculum_of(config_of(kind="fixed", mixture=mixture), cards)
    _, lines = play(curriculum, 50, lambda card, spec: 0.5, cards)
    weights = {name: one["weight"] for name, one in lines[0].items()}
    # Under rotation 1/3 and 2/3; times 1 and 2: 1/5 and 4/5; the harsh client three times as often as the mild one.
    assert weights == pytest.approx(
        {
            f"listening/avoidant/{HARSH.name}": 0.6,
            f"listening/avoidant/{MILD.name}": 0.2,
            f"listening/passive/{HARSH.name}": 0.15,
            f"listening/passive/{MILD.name}": 0.05,
        }
    )
    groups = Counter({name: sum(line[name]["groups"] for line in lines) for name in weights})
    assert {name: count / 100 for name, count in groups.items()} == pytest.approx(weights, abs=0.011)


def test_a_card_without_a_need_or_a_temperament_is_played_too() -> None:
    cards = [a_card("en-a", need=None, temperament=None), a_card("en-b")]
    groups, lines = play(curriculum_of(config_of(kind="fixed"), cards), 4, lambda card, spec: 0.5, cards)
    assert f"unstated/unstated/{MILD.name}" in lines[0]
    assert {card for step in groups for card, _ in step} == {"en-a", "en-b"}


def test_each_client_fails_a_dialogue_by_its_own_threshold_and_a_broken_off_one_tells_nothing() -> None:
    config = config_of(kind="adaptive", prior=2)
    curriculum = curriculum_of(config, [a_card("en-a")])
    curriculum.learn(0, [Outcome(card, spec, 20.0) for card, spec in curriculum.of(0) for _ in range(2)])
    line = curriculum.learn(1, [Outcome(card, spec, None) for card, spec in curriculum.of(1) for _ in range(2)])
    # Over all (2 + 1) / (4 + 2) = 1/2; the harsh client (2 + 1) / 4 = 3/4, with its own two (2 + 1.5) / 4.
    expected = {f"listening/passive/{HARSH.name}": 3.5 / 4, f"listening/passive/{MILD.name}": 0.5 / 4}
    assert {name: one["failure_rate"] for name, one in line[CURRICULUM].items()} == pytest.approx(expected)
    after = curriculum.learn(2, [Outcome(*group, None) for group in curriculum.of(2)])[CURRICULUM]
    # Two dialogues each, a step older: they count 19/20 and nothing was added.
    kept = 2 * 0.95
    overall = (kept + 1) / (2 * kept + 2)
    harsh = (kept + 2 * overall) / (kept + 2)
    rate = after[f"listening/passive/{HARSH.name}"]["failure_rate"]
    assert overall == 0.5 and rate == pytest.approx((kept + 2 * harsh) / (kept + 2))


seen_st = st.integers(0, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))).map(lambda pair: Seen(*pair))


@given(
    cards=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    seen=st.lists(seen_st, min_size=6, max_size=6),
    prefer=st.sampled_from(["hard", "moderate"]),
    floor=st.floats(0, 1),
    prior=st.floats(0.1, 100),
)
def test_no_weight_falls_under_the_floor_and_weights_sum_to_1(
    cards: list[int], seen: list[Seen], prefer: str, floor: float, prior: float
) -> None:
    strata = [Stratum(need, temperament, "s") for need in NEEDS for temperament in TEMPERAMENTS]
    shares = normalised(dict(zip(strata, map(float, cards), strict=True)))
    rates = failure_rates(dict(zip(strata, seen, strict=True)), prior)
    weights = adaptive_weights(shares, rates, prefer, floor)
    assert all(0 < rate < 1 for rate in rates.values())
    assert fsum(weights.values()) == pytest.approx(1)
    assert all(weights[one] >= floor * shares[one] * (1 - 1e-12) for one in strata)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), prefer=st.sampled_from(["hard", "moderate"]), floor=st.sampled_from([0.2, 1.0]))
def test_shares_hold_and_every_card_meets_every_client_within_the_bound(seed: int, prefer: str, floor: float) -> None:
    dice = random.Random(seed)
    odds = {(card.id, spec): dice.random() for card in CARDS for spec in (MILD.name, HARSH.name)}
    curriculum = curriculum_of(config_of(kind="adaptive", prefer=prefer, floor=floor, memory=5), CARDS)
    groups, lines = play(curriculum, 250, lambda card, spec: odds[card.id, spec])
    strata = list(lines[0])
    most = sum(1 / place for place in range(1, len(strata) + 1))  # what a stratum is ever owed
    for name in strata:
        owed = 0.0
        for line in lines:
            owed += 2 * line[name]["weight"] - line[name]["groups"]
            assert -1 < owed < most
            assert line[name]["weight"] >= floor / len(strata) * (1 - 1e-12)
    rare = 2 * (1 + most * len(strata) / floor)  # two cards in each stratum, in turn
    flat = [group for step in groups for group in step]
    for group in odds:
        places = [-1, *(place for place, played in enumerate(flat) if played == group), len(flat)]
        assert max(after - before for before, after in pairwise(places)) <= rare


def share_of(temperament: str, lines: list[dict[str, Any]]) -> float:
    """The share of the last lines' groups that went to a temperament."""
    counts = [one["groups"] * (f"/{temperament}/" in name) for line in lines[-30:] for name, one in line.items()]
    return sum(counts) / sum(one["groups"] for line in lines[-30:] for one in line.values())


def test_what_fails_most_is_played_most_where_hard_cards_are_preferred() -> None:
    config = config_of(kind="adaptive", prefer="hard")
    _, lines = play(curriculum_of(config, CARDS), 80, lambda card, spec: 0.9 if card.temperament == "passive" else 0.05)
    # The floor alone leaves avoidant cards 1/8 of the groups; half were theirs under rotation.
    assert 0.7 < share_of("passive", lines) < 0.875
    rates = [one["failure_rate"] for name, one in lines[-1].items() if "/passive/" in name]
    assert min(rates) > 0.75


def test_what_fails_half_the_time_is_played_most_where_moderate_cards_are_preferred() -> None:
    config = config_of(kind="adaptive", prefer="moderate")
    _, lines = play(curriculum_of(config, CARDS), 80, lambda card, spec: 0.5 if card.temperament == "passive" else 1.0)
    assert 0.65 < share_of("passive", lines) < 0.875


def test_a_curriculum_forgets_so_that_what_became_easy_is_played_less() -> None:
    curriculum = curriculum_of(config_of(kind="adaptive", prefer="hard", memory=5), CARDS)
    _, before = play(curriculum, 60, lambda card, spec: float(card.temperament == "passive"))
    _, after = play(curriculum, 60, lambda card, spec: float(card.temperament == "avoidant"), start=60)
    assert share_of("passive", before) > 0.6 and share_of("passive", after) < 0.4


def test_the_same_record_gives_the_same_choices_and_another_seed_others() -> None:
    config = config_of(kind="adaptive")
    first, again = (play(curriculum_of(config, CARDS), 30, lambda card, spec: 0.4) for _ in range(2))
    assert first == again
    shuffled = play(curriculum_of(config, CARDS[::-1], (HARSH, MILD)), 30, lambda card, spec: 0.4)
    assert shuffled == first  # the order in which cards and clients are given says nothing
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 1})})
    assert play(curriculum_of(other, CARDS), 30, lambda card, spec: 0.4)[0] != first[0]


def test_asking_twice_changes_nothing() -> None:
    curriculum = curriculum_of(config_of(kind="adaptive"), CARDS)
    assert curriculum.of(0) == curriculum.of(0)


def test_a_step_out_of_turn_is_refused() -> None:
    curriculum = curriculum_of(config_of(kind="adaptive"), CARDS)
    with pytest.raises(ValueError, match="after step -1 comes step 0, not 1"):
        curriculum.learn(1, [])
    with pytest.raises(RunError, match=r"tells of 0 steps.*start the run afresh"):
        curriculum.of(3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clients": ["sage-v1"]}, r"curriculum\.clients: rotation plays one client.*adaptive, or to fixed"),
        ({"kind": "adaptive", "mixture": {"need": {"listening": 2}}}, r"curriculum\.mixture: says nothing to adaptive"),
        ({"prefer": "hard"}, r"curriculum\.prefer: says nothing to rotation.*adaptive"),
        ({"kind": "fixed", "floor": 0.5}, r"curriculum\.floor: says nothing to fixed"),
        ({"kind": "fixed", "memory": 3}, r"curriculum\.memory"),
        ({"kind": "fixed", "prior": 3}, r"curriculum\.prior"),
        ({"kind": "fixed", "mixture": {"need": {"listening": 0}}}, "greater than 0"),
        ({"kind": "fixed", "mixture": {"need": {"money": 1}}}, "listening"),
        ({"kind": "harder"}, "rotation"),
    ],
)
def test_what_can_t_be_combined_is_refused_with_its_key(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunConfig.model_validate({"curriculum": given})


FEW = "cards.paths=[configs/cards/en/bus-depot-letter.yaml,configs/cards/en/biscuit-tin.yaml]"
SERVED = "client.model.serve.model=bootstrap"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["curriculum.clients=[attune-v1]"], r"^curriculum\.clients\.0: client\.model: .*attune-v1.*name one"),
        (["curriculum.clients=[nobody-v1]"], r"^curriculum\.clients\.0: client spec 'nobody-v1'"),
        (["curriculum.clients=[appraisal-v1]"], r"^curriculum\.clients\.0: appraisal-v1 is client\.spec already"),
        (["curriculum.clients=[sage-v1,sage-v1]", SERVED], r"^curriculum\.clients\.1: sage-v1 is named twice already"),
        (
            ["curriculum.mixture.spec.sage-v1=2"],
            r"^curriculum\.mixture\.spec\.sage-v1: no training client has it; there is appraisal-v1$",
        ),
        (["client.members.nobody-v1.model=null"], r"^client\.members: nobody-v1 is no member"),
    ],
)
def test_a_client_that_can_t_be_played_is_refused_before_anything_heavy(given: list[str], said: str) -> None:
    config = load_config(None, ["curriculum.kind=fixed", FEW, *given])
    with pytest.raises(InputError, match=said):
        Plan.of(config)


def test_a_factor_on_what_no_card_has_is_refused() -> None:
    rules = Rules.model_validate({"kind": "fixed", "mixture": {"temperament": {"negative": 2}}})
    said = r"curriculum\.mixture\.temperament\.negative: no training card has it; there is avoidant, passive"
    with pytest.raises(InputError, match=said):
        check_mixture(rules, CARDS, [MILD.name])


def test_a_plan_holds_every_client_of_training() -> None:
    given = [FEW, "curriculum.kind=adaptive", "curriculum.clients=[sage-v1,attune-v1]"]
    config = load_config(None, [*given, SERVED])
    plan = Plan.of(config)
    assert [spec.name for spec in plan.training_specs] == ["appraisal-v1", "sage-v1", "attune-v1"]
    assert training_specs(config, plan.train_cards) == plan.training_specs
    curriculum = plan.curriculum(Path("nowhere"))
    assert curriculum and {spec for step in [curriculum.of(0)] for _, spec in step} <= {
        "appraisal-v1",
        "sage-v1",
        "attune-v1",
    }
    assert Plan.of(load_config(None, [FEW])).curriculum(Path("nowhere")) is None


ADAPTIVE = config_of(kind="adaptive", prefer="hard", prior=2)
METRICS = "metrics.jsonl"


@pytest.mark.parametrize("config", [ADAPTIVE, config_of(kind="fixed", mixture={"spec": {HARSH.name: 2}})])
def test_a_run_with_several_clients_is_verified(tmp_path: Path, config: RunConfig) -> None:
    run = make_curriculum_run(tmp_path / "run", config)
    found = verify_run(run)
    assert found.verified, found.problem
    played = {
        json.loads(line)["spec"] for line in (run / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert played == {MILD.name, HARSH.name}


def _first(line: dict[str, Any]) -> dict[str, Any]:
    return next(iter(line[CURRICULUM].values()))


@pytest.mark.parametrize(
    "change",
    [
        lambda line: _first(line).update(groups=_first(line)["groups"] + 1),
        lambda line: _first(line).update(weight=_first(line)["weight"] + 1e-6),
        lambda line: _first(line).update(failure_rate=0.123),
        lambda line: line[CURRICULUM].popitem(),
        lambda line: line.pop(CURRICULUM),
    ],
)
def test_a_changed_curriculum_line_is_found(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    run = make_curriculum_run(tmp_path / "run", ADAPTIVE)
    edit(run, METRICS, change, line=3)
    file, line, said = problem_of(verify_run(run))
    assert (file, line) == (METRICS, 3) and said.startswith(CURRICULUM)


def test_dialogues_that_the_curriculum_did_not_choose_are_found(tmp_path: Path) -> None:
    run = make_curriculum_run(tmp_path / "run", ADAPTIVE)
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("prefer: hard", "prefer: moderate"), encoding="utf-8")
    edit(run, METRICS, lambda line: None, line=1)
    file, _, said = problem_of(verify_run(run))
    assert file in (METRICS, "trajectories.jsonl") and (CURRICULUM in said)


def test_a_first_line_that_names_other_clients_is_found(tmp_path: Path) -> None:
    run = make_curriculum_run(tmp_path / "run", ADAPTIVE)

    def one_client(line: dict[str, Any]) -> None:
        line[CURRICULUM] = {name: one for name, one in line[CURRICULUM].items() if MILD.name in name}

    edit(run, METRICS, one_client, line=1)
    file, _, said = problem_of(verify_run(run))
    assert file == METRICS and "names 1 client specs, of which specs/ holds 1; the config names 2" in said
