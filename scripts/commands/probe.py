"""``attune probe``: what lists of fixed replies, and a few reactive tricks, reach with a simulated client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from envs.card_set import load_cards
from envs.cards import CARDS_DIR, Language, PersonaCard, Split
from envs.client_spec import ClientSpec, load_spec
from envs.errors import InputError
from envs.probes import BUILTIN, DEGENERATE_BUILTIN, FixedPolicy, load_policies
from envs.receipts import TrajectoryLog
from envs.supporters import FixedReplies
from scripts.console import JsonFlag, command_app, print_json, stderr, stdout
from scripts.tables import ProbeResult, probe_table
from trainers.assembly import CACHE
from trainers.client_models import ModelPool, check_client
from trainers.config_file import load_config
from trainers.evaluation import (
    TRAJECTORIES,
    MakeClient,
    SupporterFactory,
    check_unused,
    play,
    settings_for,
    summarise,
)

SHIPPED = Path(__file__).resolve().parent.parent.parent / "configs" / "probes" / "degenerate.jsonl"

app = command_app("attune probe --client appraisal-v1 --replies configs/probes/degenerate.jsonl --json")


@dataclass(frozen=True)
class Contender:
    """Someone who tries; ``language`` keeps them to the cards of that language."""

    name: str
    kind: str
    factory: SupporterFactory
    language: Language | None = None


@app.command(epilog=app.info.epilog)
def probe(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="client.model...=value, for clients that a language model plays.")
    ] = None,
    client: Annotated[str, typer.Option(help="Client spec: a name in configs/clients, or a path.")] = "appraisal-v1",
    replies: Annotated[
        Path | None,
        typer.Option(help='JSON Lines: {"name", "replies": [...]}, and "language" (en, zh) where it matters.'),
    ] = None,
    builtin: Annotated[
        bool, typer.Option("--builtin", help="Those that hand back the client's words; two references.")
    ] = False,
    cards: Annotated[
        list[Path] | None, typer.Option(help="Card files or folders.", show_default="configs/cards")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which cards are played.")] = "test",
    seeds: Annotated[int, typer.Option(min=1, help="Dialogues with each card.")] = 1,
    language: Annotated[Literal["en", "zh", "all"], typer.Option(help="Which cards are played.")] = "all",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the dialogues, one folder for each policy, with receipts.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Score policies that say the same whoever listens. Without --replies and --builtin: all that come with attune."""
    config, spec = load_config(None, [*(overrides or []), f"client.spec={client}"]), load_spec(client)
    everything = replies is None and not builtin
    fixed = load_policies(replies or SHIPPED) if replies or everything else []
    contenders = from_replies(fixed) + (from_code() if builtin or everything else [])
    languages = ("en", "zh") if language == "all" else (language,)
    chosen = [card for card in load_cards(cards or [CARDS_DIR]) if card.split == split and card.language in languages]
    if not chosen:
        raise InputError(f"no card of split {split!r} and language {language!r}; change --split, --language or --cards")
    check_client(config.client, spec, chosen)
    if out:
        _check_folders(out, contenders)
    with ModelPool(config, CACHE, lambda line: stderr.print(line, markup=False)) as models:
        results = score(contenders, chosen, spec, seeds, models.maker(config.client, spec), out)
    if json:
        print_json({"policies": [as_json(result) for result in results]})
    else:
        stdout().print(probe_table(results, spec.name))


def _check_folders(out: Path, contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        if Path(contender.name).name != contender.name:
            raise InputError(
                f"--out: the policy {contender.name!r} can't name a folder; give it a name without slashes"
            )
        check_unused(out / contender.name)


def from_replies(policies: Sequence[FixedPolicy]) -> list[Contender]:
    """Contenders that say their list in order."""
    return [Contender(p.name, "fixed", lambda key, p=p: FixedReplies(p.replies), p.language) for p in policies]


def from_code() -> list[Contender]:
    """The reactive tricks, then the scripted supporters that show what the client's scale means."""
    return [
        Contender(
            name,
            "reactive" if name in DEGENERATE_BUILTIN else "reference",
            lambda key, make=make: make(key.language, key.dialogue_seed),
        )
        for name, make in BUILTIN.items()
    ]


def score(
    contenders: Sequence[Contender],
    cards: Sequence[PersonaCard],
    spec: ClientSpec,
    seeds: int,
    client: MakeClient | None = None,
    out: Path | None = None,
) -> list[ProbeResult]:
    """Play every contender over the cards of its language, and keep the dialogues below ``out``, a folder for each.

    Raises InputError when no contender has a card to play.
    """
    settings, results = settings_for(spec, seeds), []
    for contender in contenders:
        own = [card for card in cards if contender.language in (None, card.language)]
        if not own:
            stderr.print(f"{contender.name}: left out, no {contender.language} card is played", markup=False)
            continue
        with stderr.status(contender.name):
            trajectories = asyncio.run(play(contender.factory, own, spec, settings.seeds, client=client))
        if out:
            (out / contender.name).mkdir(parents=True, exist_ok=True)
            TrajectoryLog(out / contender.name / TRAJECTORIES).append(*trajectories)
        result = ProbeResult(contender.name, contender.kind, summarise(trajectories, own, settings))
        if broken := [outcome.error for outcome in result.evaluation.outcomes if outcome.error]:
            stderr.print(f"{contender.name}: {len(broken)} dialogues broke off: {broken[0]}", markup=False)
        results.append(result)
    if not results:
        raise InputError("no policy speaks the language of the cards; change --language, or the policies' own")
    return results


def as_json(result: ProbeResult) -> dict[str, object]:
    """One entry of the command's JSON object. Emotions are 0-100, rates in [0, 1]; null could not be measured."""
    found = result.evaluation
    return {
        "name": result.name,
        "mean_final_emotion": found.mean_final_emotion.mean,
        "ci95": found.mean_final_emotion.ci95,
        "success_rate": found.success_rate.mean,
        "failure_rate": found.failure_rate.mean,
        "dialogues": found.dialogues,
        "errors": found.errors,
    }
