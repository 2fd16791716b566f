"""Certificates: what they cover, how tampering shows, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.errors import InputError
from rewards.certificate import KEY_VARIABLE, SIGNED, UNSIGNED, Certificate, Data, Subject
from rewards.certify import Settings, audit
from rewards.ratings import Columns, read_ratings
from rewards.rubric import load_rubric
from scripts import attune

AXES = ("relevance", "empathy", "persona_consistency", "safety", "fluency")
MODEL, PROMPT = "acme/judge-7b", "a" * 64


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Kardia's axes rated by people and by a judge that follows them, save on safety, where it always says 5."""
    folder = tmp_path_factory.mktemp("ratings")
    generator = np.random.default_rng(0)
    heads, paths = ",".join(("conversation_id", "responder", *AXES)), (folder / "human.csv", folder / "r3.csv")
    lines: tuple[list[str], list[str]] = ([heads], [heads])
    for at in range(360):
        human = np.clip(np.round(generator.normal(size=5) + at % 6 / 2 + 2), 1, 5).astype(int)
        judge = np.clip(human + generator.choice([0, 0, 0, 1], size=5), 1, 5)
        judge[3] = 5
        for side, given in zip(lines, (human, judge), strict=True):
            side.append(",".join(map(str, (at // 6, f"r{at % 6}", *given))))
    for path, side in zip(paths, lines, strict=True):
        path.write_text("\n".join(side) + "\n", encoding="utf-8")
    return paths


def certificate(ratings: tuple[Path, Path], key: str | None = None, **changes: Any) -> Certificate:
    rubric = load_rubric("kardia")
    told = {"model": MODEL, "prompt_hash": PROMPT, "rubric": rubric.name, "rubric_hash": rubric.hash} | changes
    found = audit(read_ratings(*ratings, Columns()), Settings(resamples=100, low=1, high=5))
    data = Data(human="human.csv", human_sha256="0" * 64, judge="r3.csv", judge_sha256="1" * 64)
    return Certificate.sign(Subject(name="r3", **told), data, found, key)


def saved(found: Certificate, path: Path) -> Path:
    path.write_text(json.dumps(found.model_dump(mode="json"), indent=2), encoding="utf-8")
    return path


def test_a_certificate_is_read_back_as_it_was_written(ratings: tuple[Path, Path], tmp_path: Path):
    found = certificate(ratings)
    assert found.signature.kind == UNSIGNED
    assert Certificate.load(saved(found, tmp_path / "cert.json")) == found


def test_it_covers_the_rubric_model_and_prompt_that_it_names_on_axes_that_pass(ratings: tuple[Path, Path]):
    found, rubric = certificate(ratings), load_rubric("kardia").hash
    assert found.covers(rubric, "empathy", MODEL, PROMPT)
    assert not found.covers(rubric, "safety", MODEL, PROMPT)
    assert "does not pass on safety" in (found.gap(rubric, "safety", MODEL, PROMPT) or "")
    assert "no axis 'warmth'" in (found.gap(rubric, "warmth", MODEL, PROMPT) or "")
    assert "another rubric" in (found.gap("b" * 64, "empathy", MODEL, PROMPT) or "")
    assert "another model" in (found.gap(rubric, "empathy", "acme/judge-8b", PROMPT) or "")
    assert "another prompt" in (found.gap(rubric, "empathy", MODEL, "c" * 64) or "")


@pytest.mark.parametrize(("untold", "what"), [("rubric_hash", "rubric"), ("model", "model"), ("prompt_hash", "prompt")])
def test_what_was_not_told_when_it_was_made_is_not_covered(ratings: tuple[Path, Path], untold: str, what: str):
    found = certificate(ratings, **{untold: None})
    assert found.gap(load_rubric("kardia").hash, "empathy", MODEL, PROMPT) == f"the certificate names no {what}"


def changes(data: dict[str, Any]) -> dict[str, Any]:
    """Each way to make a certificate say more than was measured, by name."""
    safety = data["axes"][3]
    return {
        "verdict": lambda: safety.update(passes=True, refused_for=[]),
        "number": lambda: safety["item"]["icc_c1"].update(value=0.9),
        "model": lambda: data["judge"].update(model="acme/other"),
        "rubric": lambda: data["judge"].update(rubric_hash="f" * 64),
        "data": lambda: data["data"].update(human_sha256="f" * 64),
        "count": lambda: data.update(used=10_000),
        "signature": lambda: data["signature"].update(value="0" * 64),
    }


@pytest.mark.parametrize("key", [None, "a key"])
@pytest.mark.parametrize("change", ["verdict", "number", "model", "rubric", "data", "count", "signature"])
def test_a_change_anywhere_shows(ratings: tuple[Path, Path], tmp_path: Path, key: str | None, change: str):
    path = saved(certificate(ratings, key), tmp_path / "cert.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    changes(data)[change]()
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match=r"cert.json: does not have the signature"):
        Certificate.load(path, key)


def test_a_signature_needs_its_key_and_no_other(ratings: tuple[Path, Path], tmp_path: Path):
    found = certificate(ratings, "a key")
    path = saved(found, tmp_path / "cert.json")
    assert found.signature.kind == SIGNED
    assert Certificate.load(path, "a key") == found
    with pytest.raises(InputError, match="signed with another key"):
        Certificate.load(path, "another key")
    with pytest.raises(InputError, match=f"set {KEY_VARIABLE}"):
        Certificate.load(path)


def test_a_mere_digest_is_refused_where_a_key_is_known(
    ratings: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = saved(certificate(ratings), tmp_path / "cert.json")
    monkeypatch.setenv(KEY_VARIABLE, "a key")
    with pytest.raises(InputError, match="is unsigned"):
        Certificate.load(path)
    assert certificate(ratings).signature.kind == SIGNED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "can't be read as a certificate"),
        ("[]", "Input should be"),
        ('{"format": 1, "format": 1}', "a key stands twice"),
        ('{"format": 2}', "format"),
    ],
)
def test_what_is_no_certificate_is_refused(tmp_path: Path, text: str, said: str):
    path = tmp_path / "cert.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        Certificate.load(path)


def test_a_certificate_that_is_not_there_is_asked_for():
    with pytest.raises(InputError, match="attune judge certify --out"):
        Certificate.load(Path("none.json"))


def run(ratings: tuple[Path, Path], *options: str) -> int:
    human, judge = map(str, ratings)
    return attune.main(["judge", "certify", "--human", human, "--judge", judge, "--resamples", "100", *options])


def test_the_command_writes_the_certificate_that_it_prints(
    ratings: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "cert.json"
    told = ("--rubric", "kardia", "--judge-model", MODEL, "--prompt-hash", PROMPT, "--out", str(out), "--json")
    assert run(ratings, *told) == 0
    printed, notes = capsys.readouterr()
    data = json.loads(printed)
    assert data == json.loads(out.read_text(encoding="utf-8"))
    assert [axis["axis"] for axis in data["axes"]] == list(AXES)
    assert [axis["passes"] for axis in data["axes"]] == [True, True, True, False, True]
    assert {"value", "ci95"} < set(data["axes"][0]["icc_c1"]) and data["axes"][0]["item"]["icc_a1"]["ci95"]
    assert data["excluded"] == ["r3"] and "left out as the judge's own: r3" in notes
    assert "safety is refused" in notes
    assert Certificate.load(out).covers(load_rubric("kardia").hash, "fluency", MODEL, PROMPT)


def test_the_command_shows_a_table_with_both_levels(
    ratings: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(ratings, "--exclude", "none") == 0
    printed, notes = capsys.readouterr()
    assert all(name in printed for name in (*AXES, "ICC(C,1)", "item C,1", "inverted %", "refused", "passes"))
    assert "…" not in printed
    assert "unsigned (digest only)" in printed and "no responder is left out" in notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--scale", "5"), "--scale 5: is not of the form LOW:HIGH"),
        (("--scale", "5:1"), "the first end must lie below"),
        (("--map", "empathy"), "is not of the form JUDGE_COLUMN=HUMAN_COLUMN"),
        (("--rubric", "mentalaling"), "did you mean 'mentalalign'"),
        (("--rubric", "mentalalign"), "has no column for the axis 'guidance'"),
        (("--exclude", "r9"), "there is no such responder"),
        (("--scale", "7:9"), "0 of 360 responses are rated by both"),
    ],
)
def test_the_command_refuses_what_it_cant_use_with_exit_status_two(
    ratings: tuple[Path, Path], capsys: pytest.CaptureFixture[str], options: tuple[str, str], said: str
):
    assert run(ratings, *options) == 2
    assert said in " ".join(capsys.readouterr().err.split())
