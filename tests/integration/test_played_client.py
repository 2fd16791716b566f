"""Runs whose client a language model plays, over real HTTP: recorded, counted, verified, replayed with no network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from envs.errors import InputError, RunError
from envs.receipts import read_log
from scripts.attune import main
from tests.scripted_server import ScriptedServer
from trainers.config_file import load_config
from trainers.plan import Plan
from trainers.run import Progress, run
from trainers.verification import verify_run

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-not-to-be-written-anywhere"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ATTUNE_TEST_KEY", KEY)


def few_cards() -> str:
    """One card of each split."""
    paths = sorted((ROOT / "configs" / "cards" / "en").glob("*.yaml"))
    chosen = [
        next(str(path.relative_to(ROOT)) for path in paths if f"\nsplit: {split}\n" in path.read_text(encoding="utf-8"))
        for split in ("train", "test")
    ]
    return f"[{','.join(chosen)}]"


def overrides(model_dir: Path, folder: Path, url: str, name: str, *more: str) -> list[str]:
    return [
        f"run.dir={folder}",
        f"run.name={name}",
        f"policy.model={model_dir}",
        "policy.max_new_tokens=4",
        "policy.context_tokens=4000",
        "engine.kind=transformers",
        f"cards.paths={few_cards()}",
        "client.spec=attune-v1",
        f"client.model.endpoint.base_url={url}",
        "client.model.endpoint.model=scripted",
        "client.model.endpoint.key_env=ATTUNE_TEST_KEY",
        "client.model.endpoint.prompt_price=1.0",
        "client.model.endpoint.completion_price=2.0",
        f"client.cache={folder / 'answers.sqlite'}",
        "dialogue.max_turns=2",
        "trainer.steps=2",
        "trainer.cards_per_step=1",
        "trainer.dialogues_per_card=4",
        "trainer.micro_batch=4",
        "trainer.minibatches=1",
        "evaluation.bootstrap_resamples=100",
        "evaluation.seeds_per_card=1",
        *more,
    ]


def played(model_dir: Path, folder: Path, url: str, name: str, *more: str) -> tuple[Path, dict[str, Any]]:
    config = load_config(None, overrides(model_dir, folder, url, name, *more))
    return config.run.folder, run(Plan.of(config), Progress())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def recorded(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], ScriptedServer]:
    """A finished run, its summary, and the server that it asked, closed."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, ScriptedServer() as server:
        patch.chdir(ROOT)
        patch.setenv("ATTUNE_TEST_KEY", KEY)
        run_dir, summary = played(model_dir, folder, server.url, "recorded")
    return run_dir, summary, server


def test_a_run_with_a_played_client_trains_and_is_verified_from_its_record_alone(recorded) -> None:
    run_dir, summary, server = recorded
    assert summary["verified"] is True and summary["clients"] == {"training": "attune-v1", "evaluation": "attune-v1"}
    assert verify_run(run_dir).turns > 8
    assert [line["error_rate"] for line in rows(run_dir / "metrics.jsonl")] == [0, 0]
    assert set(server.outcomes) == {"ok"}


def test_tokens_and_cost_are_counted_for_each_dialogue(recorded) -> None:
    run_dir, _, server = recorded
    usages = [*rows(run_dir / "usage.jsonl"), *rows(run_dir / "evaluation/base/usage.jsonl")]
    usages += rows(run_dir / "evaluation/tuned/usage.jsonl")
    assert [usage["dialogue_id"] for usage in rows(run_dir / "usage.jsonl")] == [
        line.trajectory.dialogue_id for line in read_log(run_dir / "trajectories.jsonl")
    ]
    assert sum(usage["requests"] for usage in usages) == len(server.requests)
    assert all(usage["asks"] == usage["cached"] + usage["requests"] for usage in usages)
    for usage in usages:
        price = (usage["prompt_tokens"] * 1.0 + usage["completion_tokens"] * 2.0) / 1e6
        assert usage["cost"] == pytest.approx(price) if usage["requests"] else usage["cost"] is None
    steps = [line["client_models"] for line in rows(run_dir / "metrics.jsonl")]
    assert sum(step["requests"] for step in steps) == sum(u["requests"] for u in rows(run_dir / "usage.jsonl"))
    (model,) = json.loads((run_dir / "models.json").read_text(encoding="utf-8"))["models"]
    assert (model["model"], model["requests"], model["failures"]) == ("scripted", len(server.requests), {})


def test_the_key_is_sent_and_written_nowhere(recorded) -> None:
    run_dir, _, server = recorded
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    written = [path for path in run_dir.parent.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_the_policy_never_hears_the_need_and_the_speaking_call_never_the_number(recorded) -> None:
    run_dir, _, server = recorded
    speaking = [r for r in server.requests if r["response_format"]["json_schema"]["name"] == "reply"]
    assert speaking and not any("The emotion before the reply" in json.dumps(request) for request in speaking)
    prompts = (run_dir / "prompts").glob("*.txt")
    assert all("hidden" not in path.read_text(encoding="utf-8") for path in prompts)


def test_a_run_recorded_once_replays_offline_to_the_same_receipts_and_the_same_adapter(
    recorded, model_dir, monkeypatch
) -> None:
    run_dir, _, server = recorded

    def denied(*_: object, **__: object) -> None:
        raise AssertionError("something asked for the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, denied)
    monkeypatch.setattr(socket, "getaddrinfo", denied)
    monkeypatch.delenv("ATTUNE_TEST_KEY")
    more = ("client.offline=true", f"run.dir={run_dir.parent / 'offline'}")  # versions bear the run's name, so it stays
    again, summary = played(model_dir, run_dir.parent, server.url, "recorded", *more)
    assert summary["verified"] is True
    logs = ("trajectories.jsonl", "evaluation/base/trajectories.jsonl", "evaluation/tuned/trajectories.jsonl")
    for name in (*logs, "scores.jsonl", "adapters/final/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (run_dir / name).read_bytes(), name
    usages = rows(again / "usage.jsonl")
    assert all(usage["asks"] == usage["cached"] and usage["requests"] == 0 for usage in usages)


def test_offline_with_another_card_every_dialogue_says_which_answer_the_cache_lacks(recorded, model_dir) -> None:
    run_dir, _, server = recorded
    more = ("client.offline=true", "run.seed=7", "trainer.error_budget=1.0", "trainer.steps=1", "evaluation.split=dev")
    with pytest.raises(InputError, match="no card of split 'dev'"):
        played(model_dir, run_dir.parent, server.url, "lacking", *more)
    config = load_config(None, overrides(model_dir, run_dir.parent, server.url, "lacking", *more[:-1]))
    run(Plan.of(config), Progress())
    errors = [line.trajectory.error for line in read_log(config.run.folder / "trajectories.jsonl")]
    assert errors and all(error and "holds no answer of scripted" in error for error in errors)


def test_a_run_whose_client_never_answers_ends_before_it_trains(model_dir, tmp_path) -> None:
    with ScriptedServer(script=lambda request: "not JSON") as server:
        config = load_config(None, overrides(model_dir, tmp_path, server.url, "mute"))
        with pytest.raises(RunError, match=r"(?s)1 of 1 dialogues broke off.*can't be used.*mend the cause"):
            run(Plan.of(config), Progress())
    assert not (config.run.folder / "evaluation/base/evaluation.json").exists()
    assert not (config.run.folder / "trajectories.jsonl").exists()


def test_an_evaluation_with_a_client_that_training_never_met_is_one_line_and_the_report_names_both(
    model_dir, tmp_path, capsys
) -> None:
    with ScriptedServer() as server:
        given = overrides(model_dir, tmp_path, server.url, "other", "evaluation.client.spec=sage-v1")
        assert main(["evaluate", "--out", str(tmp_path / "out"), "--base", *given]) == 0
    assert "client sage-v1; training had attune-v1" in " ".join(capsys.readouterr().out.split())
    assert {line.trajectory.spec for line in read_log(tmp_path / "out" / "trajectories.jsonl")} == {"sage-v1"}


def test_a_played_spec_without_a_model_or_with_a_key_that_is_not_set_is_refused_before_anything_is_loaded(
    model_dir, tmp_path, monkeypatch
) -> None:
    config = load_config(None, ["client.spec=sage-v1"])
    with pytest.raises(InputError, match=r"client\.model: the client spec sage-v1 is played by a language model"):
        Plan.of(config)
    monkeypatch.delenv("ATTUNE_TEST_KEY")
    with pytest.raises(InputError, match="ATTUNE_TEST_KEY is not set"):
        Plan.of(load_config(None, overrides(model_dir, tmp_path, "http://127.0.0.1:9/v1", "x")))
