"""Run folders: taken once, written whole, finished by a manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_run import BASE, cards_for

from envs.client_spec import load_spec
from envs.errors import InputError, RunError
from trainers import manifest
from trainers.manifest import MANIFEST, Problem, check_files, read_manifest, write_json
from trainers.run_folder import MetricsLog, RunFolder, code_revision, is_finished, model_identity, provenance


def begin(path: Path, config: str = "run: {}\n", **how: bool) -> RunFolder:
    run = RunFolder.create(path, **how)
    run.record(config, cards_for(["biscuit-tin"]), [load_spec("appraisal-v1")], {"run": 3}, base=BASE)
    return run


def test_a_run_records_its_config_cards_specs_and_seeds(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        (card,) = (json.loads(line) for line in (run.path / "cards.jsonl").read_text(encoding="utf-8").splitlines())
        assert card["hash"] == cards_for(["biscuit-tin"])[0].hash
        assert json.loads((run.path / "specs" / "appraisal-v1.json").read_text(encoding="utf-8"))["clamp"] == 10
        known = json.loads((run.path / "provenance.json").read_text(encoding="utf-8"))
        assert known["seeds"] == {"run": 3}
        assert known["base"] == BASE
        assert known["packages"]["pydantic"]


def test_a_run_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        assert not is_finished(run.path)
        with pytest.raises(InputError, match="unfinished"):
            read_manifest(run.path)
        run.finish()
        assert is_finished(run.path)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_that_holds_a_run_is_refused_unless_one_says_what_to_do(tmp_path: Path, finished: bool) -> None:
    with begin(tmp_path / "run") as run:
        if finished:
            run.finish()
    with pytest.raises(InputError, match=f"{'a finished' if finished else 'an unfinished'} run; .*resume or overwrite"):
        RunFolder.create(tmp_path / "run")


def test_a_folder_that_holds_anything_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="no run of attune"):
            RunFolder.create(tmp_path, **how)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunFolder.create(tmp_path / "run")


def test_overwriting_starts_from_nothing(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        MetricsLog(run.metrics).append({"step": 0})
        run.finish()
    with RunFolder.create(tmp_path / "run", overwrite=True) as run:
        assert [path.name for path in run.path.iterdir()] == [".lock"]


def test_resuming_keeps_what_is_there_but_the_manifest(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        MetricsLog(run.metrics).append({"step": 0})
        run.finish()
    with begin(tmp_path / "run", resume=True) as run:
        assert run.metrics.exists()
        assert not is_finished(run.path)
        assert len(json.loads((run.path / "provenance.json").read_text(encoding="utf-8"))["resumed"]) == 1


def test_resuming_with_another_config_names_the_line(tmp_path: Path) -> None:
    begin(tmp_path / "run", "a: 1\nb: 2\n").close()
    with pytest.raises(InputError, match=r"config\.yaml:2: "):
        begin(tmp_path / "run", "a: 1\nb: 3\n", resume=True)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with begin(tmp_path / "run"):
        code = (
            "from trainers.run_folder import RunFolder\nfrom envs.errors import InputError\ntry:\n"
            f"    RunFolder.create({str(tmp_path / 'run')!r}, resume=True)\n"
            "except InputError as error:\n    print(error)"
        )
        root = Path(manifest.__file__).resolve().parents[1]
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        assert f"process {os.getpid()} is running there" in done.stdout
    RunFolder.create(tmp_path / "run", resume=True).close()


def test_the_folder_is_free_again_after_a_refused_start(tmp_path: Path) -> None:
    begin(tmp_path / "run").close()
    with pytest.raises(InputError):
        RunFolder.create(tmp_path / "run")
    RunFolder.create(tmp_path / "run", resume=True).close()


def test_provenance_names_neither_the_host_nor_a_folder() -> None:
    text = json.dumps(provenance({"run": 0}))
    assert str(Path.home()) + "/" not in text
    assert str(Path.cwd()) not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_code_outside_a_git_checkout_has_no_revision(tmp_path: Path) -> None:
    assert code_revision(tmp_path) is None


def test_code_in_a_git_checkout_has_a_revision_and_says_when_it_was_changed(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    revision = code_revision(tmp_path)
    assert revision and len(revision["git"]) == 40 and revision["dirty"] is False
    (tmp_path / "code.py").write_text("changed")
    assert code_revision(tmp_path) == revision | {"dirty": True}


def test_the_code_of_a_folder_inside_another_checkout_is_not_that_of_the_checkout(tmp_path: Path) -> None:
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    (tmp_path / "inner").mkdir()
    assert code_revision(tmp_path / "inner") is None


def test_a_model_from_a_hub_keeps_its_id_and_a_folder_gives_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    local = model_identity(folder, str(folder))
    assert local == {"name": "my-model", "local": True, "sha256": digest}
    assert model_identity(folder, "owner/model") == {**local, "name": "owner/model", "local": False}
    assert model_identity(tmp_path, "owner/model")["sha256"] is None


def test_metrics_write_a_number_that_is_not_finite_as_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 0, "loss": float("nan"), "seconds": {"update": float("inf")}, "parts": [1.0, float("-inf")]})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 0, "loss": None, "seconds": {"update": None}, "parts": [1.0, None]}


def test_metrics_cut_off_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st')
    MetricsLog(path).append({"step": 1})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_more_is_told_with_file_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(manifest.os, "fsync", refuse)
    with pytest.raises(RunError, match=rf"a\.json: can't be written: {os.strerror(code)}\. Free some space"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_manifest_covers_every_record_and_leaves_out_logs_and_checkpoints(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        for name in ("checkpoints/checkpoint-1/optimizer.pt", "server.log", "logs/a", "release/README.md", "x.tmp"):
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            (run.path / name).write_text("may change")
        run.finish()
        listed = {entry["path"] for entry in read_manifest(run.path)["files"]}
    assert listed == {"config.yaml", "cards.jsonl", "provenance.json", "specs/appraisal-v1.json"}


def test_a_changed_record_is_named_with_its_line(tmp_path: Path) -> None:
    with begin(tmp_path / "run", "a: 1\nb: 2\nc: 3\n") as run:
        run.finish()
    read = read_manifest(run.path)
    assert check_files(run.path, read) == 4
    (run.path / "config.yaml").write_text("a: 1\nb: 2\nc: 4\n")
    with pytest.raises(Problem) as problem:
        check_files(run.path, read)
    assert (problem.value.file, problem.value.line) == ("config.yaml", 3)


@pytest.mark.parametrize(("text", "line"), [("a: 1\n", 2), ("a: 1\nb: 2\nc: 3\n", 3)])
def test_a_line_taken_away_or_added_at_the_end_is_named(tmp_path: Path, text: str, line: int) -> None:
    with begin(tmp_path / "run", "a: 1\nb: 2\n") as run:
        run.finish()
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(Problem) as problem:
        check_files(run.path, read_manifest(run.path))
    assert problem.value.line == line


def test_a_file_that_came_or_went_after_the_end_is_named(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        run.finish()
    (run.path / "more.json").write_text("{}")
    with pytest.raises(Problem, match=r"more\.json: is not in the manifest"):
        check_files(run.path, read_manifest(run.path))
    (run.path / "more.json").unlink()
    (run.path / "provenance.json").unlink()
    with pytest.raises(Problem, match=r"provenance\.json: .* no longer"):
        check_files(run.path, read_manifest(run.path))


def test_a_manifest_that_was_changed_itself_is_found(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as run:
        run.finish()
    text = (run.path / MANIFEST).read_text()
    (run.path / MANIFEST).write_text(re.sub(r'"bytes": (\d)', lambda m: f'"bytes": {9 - int(m[1])}', text, count=1))
    with pytest.raises(Problem, match="digest"):
        read_manifest(run.path)


def test_a_folder_given_back_can_not_be_finished(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.close()
    with pytest.raises(RunError, match="no longer held"):
        run.finish()
