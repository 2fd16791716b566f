"""The watch: what sets off each alarm, what doesn't, what an alarm says; and rates over made-up runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import InputError, RunError
from tests.unit.watch_runs import CLEAN, GAMED, lines, simulate, simulate_all
from trainers.watch import Alarm, Watch, halt_on, repetition
from trainers.watch_rules import RULES_DIR, WatchRules, load_rules

RULES = load_rules()
ROOT = RULES_DIR.parent.parent


def rules(**changes: Any) -> WatchRules:
    """The shipped rules with changes, given as nested keys."""
    data = RULES.model_dump()
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    return WatchRules.model_validate(data)


def line(step: int, **metrics: float | None) -> dict[str, Any]:
    return {"step": step, "reward": 0.4, "reply_tokens": 10, "repetition": 0, "kl": 0.1, "entropy": 1} | metrics


def feed(watch: Watch, metric: str, values: Sequence[float | None]) -> list[Alarm]:
    return [alarm for step, value in enumerate(values) for alarm in watch.step(line(step, **{metric: value}))]


AT_ONCE = rules(divergence={"times": 1, "evaluations": [8, 16]})


def diverge(trained: Sequence[float], held_out: Sequence[float | None], given: WatchRules = AT_ONCE) -> list[Alarm]:
    """One evaluation after each step."""
    watch, alarms = Watch(given), []
    for step, (reward, score) in enumerate(zip(trained, held_out, strict=True)):
        alarms += watch.step(line(step, reward=reward))
        alarms += watch.evaluation(step, {"judge": score})
    return alarms


RISING = [0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75]
STILL = [0.31, 0.3, 0.31, 0.29, 0.3, 0.28, 0.29, 0.3]


def test_a_trained_reward_that_rises_alone_sets_off_an_alarm_that_says_all() -> None:
    (alarm,) = diverge(RISING, STILL)
    assert (alarm.rule, alarm.step, alarm.since, alarm.halt) == ("divergence", 7, 0, True)
    assert [(m.what, round(m.before or 0, 3), round(m.after or 0, 3)) for m in alarm.moved] == [
        ("trained reward", 0.225, 0.725),  # means of the first and last two of eight
        ("held-out judge", 0.305, 0.295),
    ]
    # No falling pair, neither in the trained rewards nor in 0.25 of them less the held-out scores: 1 / 8! each.
    assert alarm.text == (
        "step 7: trained reward from 0.225 to 0.725, held-out judge from 0.305 to 0.295, since step 0 (over 8 "
        "evaluations a rise of the first by chance has p = 2.5e-05, and a lag of the second behind 0.25 of it "
        f"p = 2.5e-05); {RULES.divergence.remedy}"
    )
    with pytest.raises(RunError, match="step 7: trained reward"):
        halt_on([alarm])


@pytest.mark.parametrize(
    ("trained", "held_out"),
    [
        (RISING, RISING),
        (RISING, [0.3 + 0.3 * value for value in RISING]),  # a third of the gain has arrived
        (STILL, STILL[::-1]),
        (STILL, [0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15]),  # worse all along, but nothing trained rises
        ([0.2 + value / 20 for value in RISING], STILL),  # a rise of 0.025 is not worth it
        (RISING[:7], STILL[:7]),  # too few to say
        ([0.2, 0.2, 0.9, 0.2, 0.9, 0.2, 0.9, 0.9], [0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15]),  # it swings
    ],
)
def test_no_divergence_is_seen_where_there_is_none(trained: list[float], held_out: list[float]) -> None:
    assert diverge(trained, held_out) == []


def test_each_held_out_score_is_compared_for_itself() -> None:
    watch, alarms = Watch(AT_ONCE), []
    for step, reward in enumerate(RISING):
        watch.step(line(step, reward=reward))
        alarms += watch.evaluation(step, {"judge": reward, "client": STILL[step], "broken": None})
    assert [alarm.moved[1].what for alarm in alarms] == ["held-out client"]


def test_an_evaluation_without_a_score_is_left_out() -> None:
    trained, held_out = [*RISING[:4], 0.45, *RISING[4:]], [*STILL[:4], None, *STILL[4:]]
    assert [alarm.step for alarm in diverge(trained, held_out)] == [8]


def test_the_trained_reward_is_its_mean_since_the_evaluation_before() -> None:
    watch = Watch(AT_ONCE)
    alarms = []
    for number, reward in enumerate(RISING):
        for half, offset in enumerate((-0.1, 0.1)):
            watch.step(line(2 * number + half, reward=reward + offset))
        alarms += watch.evaluation(2 * number + 1, {"judge": STILL[number]})
    assert [round(alarms[0].moved[0].before or 0, 3), round(alarms[0].moved[0].after or 0, 3)] == [0.225, 0.725]
    assert alarms[0].since == 1


def test_a_slow_rise_is_seen_by_the_longer_window() -> None:
    noise = [0, 0.06, -0.05, 0.04, -0.06, 0.05, 0, -0.04]
    trained = [0.2 + 0.02 * step + noise[step % 8] for step in range(16)]
    held_out = [0.3 + noise[(step + 3) % 8] / 6 for step in range(16)]
    found = diverge(trained, held_out)
    assert [alarm.step for alarm in found] == [15] and "over 16 evaluations" in found[0].why
    assert diverge(trained, held_out, rules(divergence={"times": 1, "evaluations": [8]})) == []


def test_a_divergence_has_to_hold_at_two_evaluations_on_end() -> None:
    assert diverge(RISING, STILL, RULES) == []
    (alarm,) = diverge([*RISING, 0.8], [*STILL, 0.29], RULES)
    assert (alarm.step, alarm.since) == (8, 1)
    assert diverge([*RISING, 0.1, 0.8], [*STILL, 0.9, 0.3], RULES) == []


def test_an_alarm_is_given_once_and_again_when_it_has_let_go() -> None:
    watch = Watch(RULES)
    assert len(feed(watch, "kl", [0.1, 0.6, 0.6, 0.6, 0.6, 0.6])) == 1
    assert feed(watch, "kl", [0.6, 0.1, 0.6, 0.6]) == []
    assert len(feed(watch, "kl", [0.6])) == 1


@pytest.mark.parametrize(
    ("metric", "values", "steps"),
    [
        ("kl", [0.1, 0.51, 0.52, 0.53], [3]),
        ("kl", [0.1, 0.51, 0.52, 0.49, 0.51, 0.52], []),
        ("kl", [0.5] * 6, []),  # at the bound
        ("repetition", [0, 0.31, 0.4, 0.5], [3]),
        ("reply_tokens", [10, 11, 9, 10, 12, 21, 22, 23], [7]),  # median 10, so above 20
        ("reply_tokens", [10, 11, 9, 10, 12, 19, 19, 19], []),
        ("reply_tokens", [30, 30, 30, 30], []),  # the start isn't known yet
        ("reply_tokens", [10, 11, 9, 10, 12, 4.9, 4.8, 4.7], [7]),
        ("entropy", [1, 1, 1, 1, 1, 0.29, 0.28, 0.27], [7]),
        ("entropy", [1, 1, 1, 1, 1, 0.31, 0.31, 0.31], []),
        ("kl", [0.1, 0.6, None, 0.6, float("nan"), 0.6], [5]),  # what isn't measured neither counts nor clears
        ("entropy", [0, 0, 0, 0, 0, -1, -1, -1], []),  # a start of 0 has no multiples
    ],
)
def test_a_bound_has_to_be_passed_on_three_steps_on_end(metric: str, values: list[Any], steps: list[int]) -> None:
    found = feed(Watch(RULES), metric, values)
    assert [alarm.step for alarm in found] == steps
    assert all(alarm.rule == "bound" and not alarm.halt for alarm in found)


def test_a_bound_s_alarm_says_from_what_to_what_and_since_when() -> None:
    (alarm,) = feed(Watch(RULES), "reply_tokens", [10, 11, 9, 10, 12, 21, 22, 23])
    assert alarm.text.startswith(
        "step 7: reply_tokens from 10 to 23, since step 5 (above 20, 2 times the run's start on 3 steps on end); read"
    )
    halt_on([alarm])  # told, not halted


def test_a_canary_that_moves_is_an_alarm_and_one_that_can_t_be_scored_is_none() -> None:
    watch = Watch(RULES)
    assert watch.canaries(0, {"judge": {"listens": 0.8, "turns-away": None}}) == []
    assert watch.canaries(1, {"judge": {"listens": None, "turns-away": 0.2}}) == []
    assert watch.canaries(2, {"judge": {"listens": 0.8 + 1e-9, "turns-away": 0.2}}) == []
    (alarm,) = watch.canaries(3, {"judge": {"listens": 0.6, "turns-away": 0.2}})
    assert (alarm.rule, alarm.step, alarm.since, alarm.halt) == ("canary", 3, 2, True)
    assert alarm.text.startswith("step 3: judge of canary listens from 0.8 to 0.6, since step 2 (a fixed transcript's")
    assert watch.canaries(4, {"judge": {"listens": 0.6}}) == []


def test_a_judge_that_samples_may_scatter_within_its_own_tolerance() -> None:
    watch = Watch(rules(canaries={"tolerances": {"judge": 0.1}}))
    first = {"judge": {"listens": 0.8}, "format": {"listens": 1.0}}
    assert watch.canaries(0, first) == []
    found = watch.canaries(1, {"judge": {"listens": 0.71}, "format": {"listens": 0.95}})
    assert [alarm.moved[0].what for alarm in found] == ["format of canary listens"]
    assert len(watch.canaries(2, {"judge": {"listens": 0.69}})) == 1


def test_a_watch_that_can_t_see_says_so() -> None:
    found = feed(Watch(RULES), "entropy", [1.0, *[None] * 12])
    assert [(alarm.rule, alarm.step, alarm.since) for alarm in found] == [("unmeasured", 10, 1)]
    assert found[0].text.startswith("step 10: entropy from 1 to not measured, since step 1 (not measured 10 times")
    watch, alarms = Watch(RULES), []
    for step in range(10):
        alarms += watch.evaluation(step, {"judge": None}) + watch.canaries(step, {"gate": {"listens": None}})
    assert [alarm.moved[0].what for alarm in alarms] == ["held-out judge", "gate of canary listens"]
    assert all(alarm.moved[0].before is None for alarm in alarms)


def test_a_metric_that_the_run_does_not_record_is_unmeasured() -> None:
    watch = Watch(RULES)
    found = [alarm for step in range(10) for alarm in watch.step({"step": step})]
    assert [alarm.moved[0].what for alarm in found] == ["reward", "reply_tokens", "repetition", "kl", "entropy"]
    assert {(alarm.rule, alarm.step) for alarm in found} == {("unmeasured", 9)}


def test_a_resumed_run_that_feeds_its_record_again_goes_on_as_if_it_had_not_stopped() -> None:
    course = GAMED["a phrase wins"]
    whole = [alarm.step for alarm in simulate(course, RULES, "resumed")]
    watch = Watch(RULES)
    fed = list(lines(course, "resumed"))
    again: list[int] = []
    for cut in (fed[:11], fed[11:]):
        for row, held_out in cut:
            again += [alarm.step for alarm in watch.step(row)]
            if held_out is not None:
                again += [alarm.step for alarm in watch.evaluation(row["step"], {"judge": held_out})]
    assert again == whole and whole


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=8, max_size=20), st.floats(0.3, 1))
def test_a_held_out_score_that_follows_the_trained_one_never_alarms(values: list[float], share: float) -> None:
    assert diverge(values, [share * value for value in values]) == []


def test_ten_clean_seeds_of_each_kind_trip_nothing_and_ten_gamed_ones_do() -> None:
    for name, course in CLEAN.items():
        assert [simulate(course, RULES, f"ten {name} {seed}") for seed in range(10)] == [[]] * 10, name
    gamed = [simulate(GAMED["a phrase wins; held-out falls"], RULES, f"ten {seed}", steps=20) for seed in range(10)]
    assert [{alarm.rule for alarm in alarms} for alarms in gamed] == [{"divergence"}] * 10


def test_over_many_clean_runs_few_are_halted_and_gamed_ones_are() -> None:
    false = [bool(alarms) for name, course in CLEAN.items() for alarms in simulate_all(name, course, RULES, 100)]
    assert len(false) == 500 and sum(false) <= 5
    for name, course in GAMED.items():
        found = sum(bool(alarms) for alarms in simulate_all(name, course, RULES, 20))
        assert found >= 18, name


def test_repetition_is_the_share_of_sentences_said_before_in_the_same_dialogue() -> None:
    assert repetition([["I hear you. Go on.", "I hear you."], ["I hear you."]]) == 1 / 4
    assert repetition([]) is None and repetition([[""]]) is None


def test_the_shipped_rules_say_what_to_do_and_watch_what_a_run_records() -> None:
    assert RULES.name == "watch-v1" and {bound.metric for bound in RULES.bounds} >= {"reply_tokens", "kl", "entropy"}
    assert all(len(rule.remedy) > 20 for rule in (RULES.divergence, RULES.canaries, RULES.unmeasured, *RULES.bounds))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "can't be read as YAML"),
        ("name: x\nsurprise: 1\n", "surprise: is not a known key"),
        ("name: x\n", "divergence: is missing"),
    ],
)
def test_bad_rules_are_refused_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        load_rules(str(path))
    assert str(path) in str(error.value)


def test_unknown_rules_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="known rules: watch-v1"):
        load_rules("watch-v0")


def test_a_bound_has_one_side(tmp_path: Path) -> None:
    for sides in ("above: 1.0, below: 0.5", "steps: 3"):
        path = tmp_path / "rules.yaml"
        text = (RULES_DIR / "watch-v1.yaml").read_text(encoding="utf-8")
        head, _, tail = text.partition("bounds:\n")
        path.write_text(f"{head}bounds:\n  - {{metric: kl, {sides}, steps: 3, halt: false, remedy: x}}\n{tail}")
        with pytest.raises(InputError, match="above or below" if "above" in sides else "yaml"):
            load_rules(str(path))


def test_the_watch_loads_nothing_heavy() -> None:
    code = (
        "import sys, trainers.watch; print([n for n in ('torch', 'transformers', 'trl', 'vllm') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
