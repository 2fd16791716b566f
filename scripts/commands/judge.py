"""``attune judge``: whether a judge's ratings may be a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from envs.errors import InputError
from rewards.certificate import KEY_VARIABLE, Certificate, Data, Subject
from rewards.certify import Settings, audit, excluded_responders, judge_names
from rewards.ratings import Columns, read_ratings
from rewards.rubric import Rubric, load_rubric
from scripts.console import JsonFlag, command_app, print_json, stderr, stdout
from scripts.judge_tables import certificate_notes, certificate_table, full_width
from trainers.manifest import file_hash, write_json

app = command_app("attune judge certify --human human.csv --judge judge.csv --json", no_args_is_help=True)


@app.callback()
def _judge() -> None:
    """Whether a judge's ratings may be a reward."""


@app.command(epilog="Example: attune judge certify --human human.csv --judge judge.csv --rubric kardia --out cert.json")
def certify(
    human: Annotated[Path, typer.Option(help="CSV of people's ratings: a row per response, a column per axis.")],
    judge: Annotated[Path, typer.Option(help="CSV of the judge's ratings of the same responses.")],
    rubric: Annotated[str | None, typer.Option(help="The judge's rubric: its axes and scale are used.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model, as it is called in a run.")] = None,
    prompt_hash: Annotated[str | None, typer.Option(help="SHA-256 of the judge's prompt.")] = None,
    items: Annotated[str | None, typer.Option(help="Column of the conversation.", show_default="found")] = None,
    responder: Annotated[str | None, typer.Option(help="Column of who responded.", show_default="found")] = None,
    renamed: Annotated[
        list[str] | None, typer.Option("--map", help="JUDGE_COLUMN=HUMAN_COLUMN, where they are called differently.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Responder to leave out; 'none': nobody.", show_default="the judge's own, by its name"),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="LOW:HIGH; ratings outside are missing ones.", show_default="the rubric's")
    ] = None,
    margin: Annotated[float, typer.Option(min=0.01, help="Difference from which people ordered two responses.")] = 1.0,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the certificate to this file.")] = None,
    json: JsonFlag = False,
) -> None:
    """Compare a judge with people on the same responses, and say on which axes it may be a reward."""
    asked = load_rubric(rubric) if rubric else None
    low, high = _scale(scale, asked)
    settings = Settings(resamples=resamples, seed=seed, margin=margin, low=low, high=high)
    columns = Columns(items, responder, _pairs(renamed or []))
    ratings = read_ratings(human, judge, columns, [axis.name for axis in asked.axes] if asked else None)
    with stderr.status("resampling"):
        names = judge_names(judge, judge_model)
        found = audit(ratings, settings, excluded_responders(exclude, names, ratings))
    subject = Subject(
        name=judge.stem,
        model=judge_model,
        prompt_hash=prompt_hash,
        rubric=asked.name if asked else None,
        rubric_hash=asked.hash if asked else None,
    )
    data = Data(
        human=human.name, human_sha256=file_hash(human), judge=judge.name, judge_sha256=file_hash(judge)
    )  # fmt: skip
    certificate = Certificate.sign(subject, data, found)
    if out:
        write_json(out, certificate.model_dump(mode="json"))
    for note in certificate_notes(certificate, ratings.ignored):
        stderr.print(note, markup=False, soft_wrap=True)
    if json:
        print_json(certificate.model_dump(mode="json"))
        return
    console, table = stdout(), certificate_table(certificate)
    console.width = max(console.width, full_width(table, console))
    console.print(table)
    console.print(
        f"signature: {certificate.signature.kind}{'' if out else f'; --out writes it ({KEY_VARIABLE} signs)'}"
    )


def _scale(given: str | None, rubric: Rubric | None) -> tuple[float | None, float | None]:
    """The ends of the scale: as given, else the rubric's, else unknown."""
    if given is None:
        return (rubric.scale.low, rubric.scale.high) if rubric else (None, None)
    try:
        low, high = map(float, given.split(":"))
    except ValueError:
        raise InputError(f"--scale {given}: is not of the form LOW:HIGH, such as 1:5") from None
    if not low < high:
        raise InputError(f"--scale {given}: the first end must lie below the second")
    return low, high


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    if wrong := [one for one, pair in zip(given, pairs, strict=True) if not (pair[0] and pair[2])]:
        raise InputError(f"--map {wrong[0]}: is not of the form JUDGE_COLUMN=HUMAN_COLUMN")
    return {old: new for old, _, new in pairs}
