"""Releases: what is handed on, what is refused, and the check that the adapter answers as it was evaluated."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import BASE, make_run

from envs.errors import InputError, RunError
from envs.hashing import derived_seed
from envs.trajectory import Trajectory
from scripts.attune import main
from trainers import release as release_module
from trainers.config import RunConfig
from trainers.evaluation import Comparison, Evaluation, read_trajectories
from trainers.manifest import MANIFEST, file_hash
from trainers.model_card import _finding, read_run, render
from trainers.policy_server import Sampled
from trainers.release import check_nothing_leaks, check_release, portable_config, release
from trainers.run_folder import RunFolder
from trainers.statistics import Estimate
from trainers.verification import verify_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    return make_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def released(run: Path) -> Path:
    """Its release, in the run's own folder."""
    return release(run)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("release"))


def card_of(released: Path) -> tuple[dict[str, Any], str]:
    _, front, body = (released / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_release_holds_adapter_card_evaluation_and_sums(released: Path) -> None:
    names = ["README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "evaluation.json"]
    assert sorted(path.name for path in released.iterdir()) == names


def test_a_release_leaves_the_run_as_it_was(run: Path, released: Path) -> None:
    assert released == run / "release"
    assert verify_run(run).verified


def test_every_file_of_a_release_has_its_sum(released: Path) -> None:
    lines = (released / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path.name for path in released.iterdir()} - {"SHA256SUMS"}
    assert set(sums) == files
    assert all(hashlib.sha256((released / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())


def test_the_weights_are_those_of_the_run(run: Path, released: Path) -> None:
    name = "adapter_model.safetensors"
    assert (released / name).read_bytes() == (run / "adapters" / "final" / name).read_bytes()


def test_the_adapters_config_names_the_base_model_and_no_folder(released: Path) -> None:
    config = json.loads((released / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "little-base"
    assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 16, ["q_proj"])


def test_a_config_keeps_what_is_no_path() -> None:
    config = {"base_model_name_or_path": "/a/b", "cache": "/home/me", "task_type": "CAUSAL_LM", "lora_alpha": 32}
    portable = portable_config(config, {"name": "owner/model"})
    expected = {"base_model_name_or_path": "owner/model", "cache": None, "task_type": "CAUSAL_LM", "lora_alpha": 32}
    assert portable == expected | {"inference_mode": True}


def test_no_text_of_a_release_names_this_machine(run: Path, released: Path) -> None:
    for path in released.iterdir():
        text = path.read_bytes().decode("utf-8", "replace")
        for private in (str(run), str(run.parent), str(Path.home()) + "/", str(Path.cwd()), "/tmp/"):
            assert private not in text, path.name
        assert socket.gethostname().isalpha() or socket.gethostname() not in text


def test_a_text_that_names_a_folder_of_this_machine_is_not_released(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"trained in {tmp_path / 'runs'}/demo")
    with pytest.raises(RunError, match=r"README\.md: names "):
        check_nothing_leaks(tmp_path, tmp_path / "runs" / "demo")


def test_the_front_matter_is_that_of_an_adapter_on_a_hub(released: Path) -> None:
    front, _ = card_of(released)
    assert front["base_model"] == "little-base"
    assert (front["library_name"], front["pipeline_tag"]) == ("peft", "text-generation")
    assert (front["license"], front["language"]) == ("apache-2.0", ["en"])


def test_the_card_holds_the_measured_numbers_with_their_intervals(run: Path, released: Path) -> None:
    _, body = card_of(released)
    sides = [run / "evaluation" / side / "evaluation.json" for side in ("base", "tuned")]
    base, tuned = (Evaluation.model_validate_json(path.read_bytes()).mean_final_emotion for path in sides)
    path = run / "evaluation" / "tuned" / "comparison.json"
    difference = Comparison.model_validate_json(path.read_bytes()).mean_final_emotion
    assert base.mean is not None and tuned.mean is not None and difference.mean is not None and difference.ci95
    row = next(line for line in body.splitlines() if line.startswith("| mean final emotion"))
    for shown in (f"| {base.mean:.1f} [", f"| {tuned.mean:.1f} [", f"| {difference.mean:+.1f} ["):
        assert shown in row
    assert f"[{difference.ci95[0]:+.1f}, {difference.ci95[1]:+.1f}]" in row


def test_the_card_says_what_it_is_not_and_what_was_not_measured(released: Path) -> None:
    _, body = card_of(released)
    assert "no therapist and no crisis service" in body
    assert "Anything with people" in body
    assert "no safety gate or crisis protocol" in body
    assert "this is one run with one seed" in body


def test_the_card_tells_of_cards_licences_hashes_and_how_to_serve(run: Path, released: Path) -> None:
    _, body = card_of(released)
    assert "| training | 2 | en | Apache-2.0 | written for attune |" in body
    assert "| evaluation | 2 | en |" in body
    assert "No card was both trained on and evaluated on" in body
    for digest in (BASE["sha256"], file_hash(released / "adapter_model.safetensors"), file_hash(run / MANIFEST)):
        assert f"`{digest}`" in body
    assert "--enable-lora --max-lora-rank 16 --lora-modules small=release" in body
    assert 'PeftModel.from_pretrained(base, "release")' in body
    assert "12 dialogues were played; none broke off." in body
    assert "20 recorded dialogues" in body
    assert "You listen." in body


def test_the_card_repeats_that_a_judge_did_without_a_certificate_and_names_the_gates(run: Path) -> None:
    record = read_run(run, verify_run(run))
    models = [{"endpoint": {"base_url": "http://h/v1", "model": "m"}}]
    judge = {"rubric": "kardia", "uncertified": True, "models": models}
    rewards = [{"name": "emotion"}, {"name": "rubric-kardia"}]
    gates = {"names": ["crisis", "medical"]}
    given = record.config.model_dump() | {"judges": [judge], "rewards": rewards, "gates": gates}
    changed = replace(record, config=RunConfig.model_validate(given))
    plain, judged = (render(one, folder="x", parameters=1, adapter_hash="0" * 64) for one in (record, changed))
    assert "No safety gate voided gains." in plain and "judged by" not in plain
    assert "`rubric-kardia` was judged by m, **without a certificate that this judge agrees with people**" in judged
    assert "Safety gates that voided a dialogue's gain: crisis, medical, read by patterns." in judged


def test_the_card_leaves_nothing_unfilled(released: Path) -> None:
    _, body = card_of(released)
    for sign in ("{{", "{%", "None", "Estimate(", "nan"):
        assert sign not in body
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert "\n\n\n" not in body


@pytest.mark.parametrize(
    ("ci95", "said"), [((1.0, 5.0), "raised"), ((-5.0, -1.0), "lowered"), ((-1.0, 5.0), "does not show"), (None, "few")]
)
def test_the_card_claims_no_more_than_the_interval_allows(ci95: tuple[float, float] | None, said: str) -> None:
    assert said in _finding(Estimate(mean=2.0, ci95=ci95, n=8, cards=4))


def test_evaluation_json_holds_both_sides_in_full(released: Path) -> None:
    data = json.loads((released / "evaluation.json").read_text(encoding="utf-8"))
    assert set(data) == {"base", "tuned", "comparison", "language"}
    assert Evaluation.model_validate(data["tuned"]).dialogues == 4
    assert set(data["language"]) == {"base", "tuned"}


def test_a_release_can_be_made_again_in_its_place(copy: Path) -> None:
    first = release(copy)
    (first / "stray.txt").write_text("")
    assert release(copy) == first
    assert not (first / "stray.txt").exists()


def test_a_release_goes_where_one_says_but_never_over_other_files(run: Path, tmp_path: Path) -> None:
    assert "--lora-modules small=mine" in (release(run, tmp_path / "new" / "mine") / "README.md").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no release"):
        release(run, tmp_path / "other")


def test_an_unfinished_run_is_not_released(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match="unfinished"):
        release(copy)
    assert not (copy / "release").exists()


def test_a_run_that_does_not_verify_is_not_released(copy: Path) -> None:
    text = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(text.replace('"loss": 0.1', '"loss": 0.2', 1))
    with pytest.raises(RunError, match=r"does not verify: metrics\.jsonl"):
        release(copy)
    assert not (copy / "release").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapters/final/adapter_model.safetensors", "no safetensors file"),
        ("adapters/final/adapter_config.json", "can't be read"),
        ("evaluation/tuned/comparison.json", "evaluate the run first"),
    ],
)
def test_a_run_that_lacks_what_a_release_needs_is_told_what(copy: Path, name: str, said: str) -> None:
    (copy / name).unlink()
    (copy / "summary.json").unlink()
    with RunFolder.create(copy, resume=True) as folder:
        folder.finish()
    with pytest.raises(RunError, match=said) as error:
        release(copy)
    assert name.rsplit("/", 1)[1] in str(error.value)
    assert [path.name for path in copy.iterdir() if "release" in path.name] == []


def test_a_release_that_is_interrupted_leaves_nothing_that_looks_whole(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(release_module, "check_nothing_leaks", stop)
    with pytest.raises(KeyboardInterrupt):
        release(copy)
    assert [path.name for path in copy.iterdir() if "release" in path.name] == []


def test_the_command_prints_one_json_object(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", str(run), "--out", str(tmp_path / "out"), "--no-check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["release"], len(told["files"])) == (str(tmp_path / "out"), 5)


class RecordedServer:
    """A policy server that samples what was recorded under one seed and prompt, shifted by ``off`` nats.

    Every ``other``-th reply ends in another token.
    """

    in_process = True
    left_out: Mapping[str, str] = {}

    def __init__(self, evaluated: Sequence[Trajectory], off: float = 0.0, other: int = 0) -> None:
        self.known, self.off, self.other = {}, off, other
        self.asked, self.names, self.retired = 0, [], []
        for trajectory in evaluated:
            for turn, exchange in enumerate(trajectory.turns):
                self.known[derived_seed(trajectory.seed, turn), exchange.supporter.prompt_ids] = exchange.supporter

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        adapter: str | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        stop_ids: Sequence[int] = (),
        session: int | None = None,
    ) -> Sampled:
        assert adapter == "released" and temperature == 1.0 and max_tokens == 64 and stop_ids == (2,)
        said = self.known[seed, tuple(prompt_ids)]
        self.asked += 1
        ids = said.ids if not self.other or self.asked % self.other else (*said.ids[:-1], said.ids[-1] + 1)
        return Sampled(ids, tuple(value + self.off for value in said.logprobs), tuple(prompt_ids), "stop")

    def publish(self, adapter_dir: Path) -> str:
        assert (adapter_dir / "adapter_model.safetensors").exists()
        return "released"

    def retire(self, name: str) -> None:
        self.retired.append(name)

    def follow(self, name: str, left_out: Mapping[str, str]) -> None: ...

    def report(self) -> None: ...

    def close(self) -> None: ...


def checked(released: Path, server: RecordedServer, evaluated: Sequence[Trajectory]) -> Any:
    return asyncio.run(
        check_release(released, server, evaluated, temperature=1.0, max_tokens=64, stop_ids=(2,), replies=10)
    )


def test_a_release_that_answers_as_it_was_evaluated_passes(run: Path, released: Path) -> None:
    evaluated = read_trajectories(run / "evaluation" / "tuned")
    server = RecordedServer(evaluated)
    check = checked(released, server, evaluated)
    assert (check.replies, check.same, check.max_logprob_difference) == (10, 10, 0.0)
    assert check.tokens > 100
    assert server.retired == ["released"]


def test_one_reply_in_ten_may_take_another_turn_when_likelihoods_agree(run: Path, released: Path) -> None:
    evaluated = read_trajectories(run / "evaluation" / "tuned")
    check = checked(released, RecordedServer(evaluated, off=5e-5, other=10), evaluated)
    assert (check.same, check.max_logprob_difference) == (9, pytest.approx(5e-5))


@pytest.mark.parametrize(("off", "other"), [(2e-4, 0), (0.0, 5)])
def test_a_release_that_answers_otherwise_is_found(run: Path, released: Path, off: float, other: int) -> None:
    evaluated = read_trajectories(run / "evaluation" / "tuned")
    server = RecordedServer(evaluated, off, other)
    with pytest.raises(RunError, match="does not answer as the evaluated adapter did"):
        checked(released, server, evaluated)
    assert server.retired == ["released"]


def test_a_release_can_not_be_checked_against_scripted_replies(run: Path, released: Path) -> None:
    with pytest.raises(RunError, match="no reply with token ids"):
        checked(released, RecordedServer([]), [])
