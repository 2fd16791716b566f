"""The benchmark's arithmetic, by hand: how long clients take, what a prefix cache could hold, ratios and targets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from envs.dialogue import run_dialogues
from envs.errors import RunError
from scripts import benchmark
from scripts.benchmark_parts import engine, machine, report
from scripts.benchmark_parts.overhead import EchoEngine
from scripts.benchmark_parts.prefix import IdealPrefixes
from scripts.benchmark_parts.variants import plans_for, steady
from scripts.benchmark_parts.work import LogNormal, Played, hidden, spread, talks
from tests.tiny_policy import a_card, kind_templates, tiny_model
from trainers.policy import Sampling

LATENCY = LogNormal.of(mean=0.2, p99=1.0)
MEASURED = {"dialogues": 16, "turns": 64, "waited": 12.0, "prefix_hits": 0, "prefix_queries": 100, "prefix_ideal": None}


def row(variant: str, seconds: float, latency: bool = True, round_: int = 0, **changes: Any) -> dict[str, Any]:
    base = {"variant": variant, "size": 16, "latency": latency, "round": round_, "seconds": seconds}
    return MEASURED | base | changes


def test_the_clients_wait_has_the_mean_and_the_99th_percentile_that_were_asked_for() -> None:
    assert LATENCY.sigma == pytest.approx(0.8454, abs=1e-4)  # z = 2.3263, and 2.3263 - sqrt(5.4119 - 2 ln 5)
    assert LATENCY.mu == pytest.approx(log(0.2) - 0.8454**2 / 2, abs=1e-4)
    assert LATENCY.mean == pytest.approx(0.2) and LATENCY.p99 == pytest.approx(1.0)
    drawn = sorted(LATENCY.seconds(0, dialogue, 0) for dialogue in range(20_000))
    assert fmean(drawn) == pytest.approx(0.2, rel=0.03)
    assert drawn[19_800] == pytest.approx(1.0, rel=0.08)
    assert drawn[10_000] == pytest.approx(exp(LATENCY.mu), rel=0.03)


@pytest.mark.parametrize(("mean", "p99"), [(0.2, 0.2), (0.2, 5.0)])
def test_a_mean_and_a_percentile_that_no_such_time_has_are_refused(mean: float, p99: float) -> None:
    with pytest.raises(ValueError, match="no log-normal time"):
        LogNormal.of(mean, p99)


def test_every_variant_meets_the_same_waits_and_another_round_meets_others() -> None:
    first, same, other = (talks([a_card()], 4, 3, LATENCY, seed) for seed in (1, 1, 2))
    assert first == same
    assert all(
        a != b for mine, others in zip(first, other, strict=True) for a, b in zip(mine.waits, others.waits, strict=True)
    )
    assert len({wait for talk in first for wait in talk.waits}) == 12
    assert {wait for talk in talks([a_card()], 4, 3, None, seed=1) for wait in talk.waits} == {0.0}


def test_whole_blocks_that_were_seen_before_could_be_found() -> None:
    cache = IdealPrefixes(block=4)
    assert cache.ask("v1", range(10)) == 0
    assert cache.ask("v1", range(10)) == 8  # two blocks; the last two tokens fill none
    assert cache.ask("v1", [*range(8), 99, 99, 99, 99]) == 8
    assert cache.ask("v1", range(8)) == 4  # the last token is always computed, so its block is too
    assert cache.ask("v1", [0, 1, 2, 99, 4, 5, 6, 7]) == 0  # a block after another beginning is another block
    assert cache.ask("v2", range(10)) == 0  # another adapter, another cache
    assert (cache.tokens, cache.asked) == (20, 10 + 10 + 12 + 8 + 8 + 10)


def test_a_reply_that_was_sampled_could_be_found_in_the_next_turn() -> None:
    cache = IdealPrefixes(block=4)
    cache.ask("v1", range(6))
    cache.learn("v1", range(12))
    assert cache.ask("v1", [*range(12), 50, 51]) == 12


def test_the_server_s_counters_are_read_from_its_metrics() -> None:
    text = (
        "# HELP vllm:prefix_cache_hits_total Cached tokens\n"
        'vllm:prefix_cache_hits_total{engine="0",model_name="policy"} 128.0\n'
        'vllm:prefix_cache_hits_created{engine="0",model_name="policy"} 1.79e+09\n'
        'vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="100"} 1.0\n'
    )
    assert engine.counter(text, "vllm:prefix_cache_hits") == 128
    assert engine.block_size(text) == 32
    with pytest.raises(RunError, match="no vllm:prefix_cache_queries"):
        engine.counter(text, "vllm:prefix_cache_queries")


def test_a_reply_of_another_length_is_no_measurement() -> None:
    engine.check_length([1, 2, 3], 3)
    with pytest.raises(RunError, match="sampled 2 tokens"):
        engine.check_length([1, 2], 3)


def test_waiting_is_hidden_as_far_as_it_does_not_lengthen_the_whole() -> None:
    assert hidden(Played(1, 4, seconds=5.0, waited=8.0), without=3.0) == pytest.approx(0.75)
    assert hidden(Played(1, 4, seconds=11.0, waited=8.0), without=3.0) == pytest.approx(0.0)
    assert hidden(Played(1, 4, seconds=2.0, waited=8.0), without=3.0) == 1.0
    assert hidden(Played(1, 4, seconds=5.0, waited=0.0), without=3.0) is None


def test_a_ratio_is_taken_within_a_round_and_then_its_median() -> None:
    rows = [
        row("ours", 2.0), row("TRL", 12.0),
        row("ours", 4.0, round_=1), row("TRL", 16.0, round_=1),
        row("ours", 1.0, round_=2), row("TRL", 8.0, round_=2),
        row("TRL", 1.0, latency=False), row("ours", 1.0, size=64),
    ]  # fmt: skip
    assert report.ratio({"rollouts": rows}, 16, True, "TRL") == {"median": 6.0, "low": 4.0, "high": 8.0, "rounds": 3}
    assert report.ratio({"rollouts": rows}, 16, True, "verifiers") is None


def test_what_was_hidden_compares_a_round_with_the_same_round_without_waiting() -> None:
    rows = [row("ours", 4.0), row("ours", 1.0, latency=False)]
    assert report.hidden_share({"rollouts": rows}, 16, "ours") == spread([1 - 3.0 / 12.0])


def test_targets_are_met_or_missed_by_their_medians_and_open_where_nothing_was_measured() -> None:
    rows = [row("ours", 2.0, prefix_hits=96, prefix_ideal=100), row("lock-step", 5.0), row("verifiers 0.3.1", 2.0)]
    found = {each["what"]: each for each in report.targets({"rollouts": rows})}
    lock_step = found["turns/s, ours / lock-step, 16 dialogues"]
    assert lock_step["value"]["median"] == 2.5 and lock_step["met"] is False
    assert found["turns/s, ours / verifiers 0.3.1, 16 dialogues"]["met"] is True
    assert found["prefix hits / ideal, 16 dialogues"]["value"]["median"] == pytest.approx(0.96)
    assert found["turns/s, ours / TRL, 16 dialogues"]["met"] is None


def test_memory_is_flat_when_the_last_look_is_the_first_one_and_time_linear_likewise() -> None:
    looks = [
        {"dialogues": 2000, "seconds": 10.0, "peak_mib": 400.0},
        {"dialogues": 4000, "seconds": 21.0, "peak_mib": 410.0},
        {"dialogues": 6000, "seconds": 33.0, "peak_mib": 420.0},
    ]
    assert report.growth(looks, "peak_mib") == spread([1.05])
    assert report.slowing(looks) == spread([1.2])
    assert report.growth(looks[:1], "peak_mib") is None and report.slowing([]) is None


def test_our_variant_plays_each_talk_to_its_end_with_the_words_and_turns_of_the_talk(tmp_path: Path) -> None:
    template = next(iter(kind_templates(tiny_model(tmp_path)).values()))
    asked: list[int] = []

    class Counting(EchoEngine):
        async def generate(self, prompt_ids: Sequence[int], **given: Any) -> Any:
            asked.append(len(prompt_ids))
            return await super().generate(prompt_ids, **given)

    work = talks([a_card()], 3, 2, LogNormal(mu=-9.0, sigma=0.1), seed=0)
    server = Counting((65, 66, template.end_of_turn))
    played = asyncio.run(run_dialogues(plans_for(work, server, template, Sampling(max_tokens=3), None), 2))
    assert [len(each.turns) for each in played] == [2, 2, 2] and len(asked) == 6
    assert [turn.client.text for turn in played[1].turns] == list(work[1].answers)
    assert played[0].opening and played[0].opening.text == work[0].opening


def test_a_report_is_shown_again_with_its_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.json"
    file.write_text(json.dumps({"rollouts": [row("ours", 2.0), row("TRL", 12.0)]}), encoding="utf-8")
    assert benchmark.main(["--from", str(file), "--json", "--plots", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["targets"][0]) == {"what", "unit", "target", "more_is_better", "value", "met"}
    assert shown["targets"][0]["value"]["median"] == 6.0 and shown["targets"][0]["met"] is True
    assert {path.name for path in tmp_path.glob("*.svg")} == {"benchmark.svg", "benchmark-dark.svg"}
    assert benchmark.main(["--from", str(file)]) == 0
    assert "6" in capsys.readouterr().out


def test_a_part_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--part", "everything"]) == 2
    assert "--part everything: is none of rollouts" in capsys.readouterr().err


def test_without_a_gpu_the_gpu_benchmark_says_so_and_every_target_is_open(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_has_gpu", lambda: False)
    assert benchmark.main(["--device", "cuda", "--json"]) == 0
    printed = capsys.readouterr()
    assert "there is no GPU here" in printed.err
    assert {target["met"] for target in json.loads(printed.out)["targets"]} == {None}


def test_a_part_that_is_measured_again_takes_the_place_of_the_old_one_and_other_sizes_stay() -> None:
    old = {"rollouts": [row("ours", 9.0), row("ours", 8.0, size=64)], "stream": [], "block": 128}
    new = {"rollouts": [row("ours", 1.0)], "block": 32}
    both = benchmark.merged(old, new)
    assert [(each["size"], each["seconds"]) for each in both["rollouts"]] == [(64, 8.0), (16, 1.0)]
    assert both["block"] == 32 and both["stream"] == []
    assert benchmark.merged(both, {"stream": [1]})["rollouts"] == both["rollouts"]


def test_a_stream_is_measured_while_every_place_is_taken() -> None:
    ended = [1.0, 2.0, 3.0, 5.0, 9.0, 20.0]  # with two places: from the second end to the fourth
    assert steady(ended, 2, turns=4) == {"dialogues": 2, "turns": 8, "seconds": 3.0}


def test_what_others_use_is_what_the_machine_did_less_what_we_did(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own, clock = iter([10.0, 16.0]), iter([3.0, 5.0]), iter([100.0, 104.0])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    with machine.Others() as others:
        pass
    assert others.share == 0.5  # 6 - 2 seconds of work in 4 seconds on two cores


def test_a_process_that_we_started_is_ours_and_one_that_we_did_not_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        ours = {int(folder.name) for folder in machine.own_processes()}
        assert {os.getpid(), child.pid} <= ours and os.getppid() not in ours
        child.kill()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "JSONDecodeError"),
        ('{"rollouts": [{"variant": "ours"', "JSONDecodeError"),
        ("[1]", "AttributeError"),
        ('{"rollouts": [{"variant": "ours"}]}', "KeyError: ('latency', "),
        ('{"machine": NaN}', "NaN is no number that was measured"),
    ],
    ids=["empty", "torn", "a list", "a row without numbers", "NaN"],
)
@pytest.mark.parametrize("flag", ["--from", "--out"])
def test_a_file_that_is_no_report_is_refused_before_anything_is_measured_and_stays_as_it_is(
    text: str, said: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.json"
    file.write_text(text, encoding="utf-8")
    assert benchmark.main([flag, str(file), "--part", "overhead"]) == 2
    told = capsys.readouterr().err
    assert "old.json: is no report of this benchmark" in told and said in told and "--out has written" in told
    assert file.read_text(encoding="utf-8") == text
