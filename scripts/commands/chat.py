"""``attune chat``: a person at one side of the talk, as the supporter of any client or as the client of any policy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml
from rich.text import Text

from envs.cards import PersonaCard
from envs.clients.client import Client
from envs.dialogue import DialoguePlan, Supporter, run_dialogue
from envs.errors import InputError, RunError
from envs.receipts import TrajectoryLog
from envs.trajectory import ClientTurn, Generation, Message, Stop, Trajectory
from scripts.commands.cards import find_card
from scripts.console import command_app, stderr, stdout
from trainers import assembly
from trainers.client_models import ModelPool, check_client
from trainers.config import RunConfig
from trainers.config_file import load_config
from trainers.evaluation import DialogueKey

NOTICE = "The client is simulated. This is a research tool, no therapist and no crisis service."
ENDINGS = {
    Stop.SUCCESS: "The client feels helped and ends the talk.",
    Stop.FAILURE: "The client has had enough and ends the talk.",
    Stop.GOODBYE: "The client says goodbye.",
    Stop.TURN_LIMIT: "The talk has reached its last turn.",
}

app = command_app("attune chat --card en-bus-depot-letter --hide-emotion")


class Left(Exception):
    """The person ended the talk."""


@app.command(epilog=app.info.epilog)
def chat(
    card: Annotated[str, typer.Option(help="A card's id or file: whom the client plays.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file: the client, the policy; none: the defaults.")
    ] = None,
    side: Annotated[Literal["supporter", "client"], typer.Option("--as", help="Whom you play.")] = "supporter",
    adapter: Annotated[
        Path | None, typer.Option(help="As client: folder of the adapter that answers; none: the base model.")
    ] = None,
    hide_emotion: Annotated[bool, typer.Option("--hide-emotion", help="As supporter: not told until the end.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the client or the policy.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File that the talk is appended to.")] = None,
) -> None:
    """Talk with a simulated client as its supporter, or with a policy as its client. An empty line ends the talk."""
    resolved = load_config(config, overrides or [])
    person = find_card(card, resolved.cards.paths)
    if side == "client":
        _as_client(resolved, person, adapter, seed, out)
    elif adapter:
        raise InputError("--adapter: answers a person who plays the client; add --as client, or leave it out")
    else:
        _as_supporter(resolved, person, hide_emotion, seed, out)


async def ask(prompt: str) -> str:
    """What the person types, stripped. Raises Left at an empty line and at the end of the input."""
    stderr.print(Text(prompt, style="bold"), end="")
    try:
        line = (await asyncio.to_thread(input)).strip()
    except EOFError:
        line = ""
    if not line:
        raise Left("the person ended the talk")
    return line


class HumanSupporter:
    """A person who answers at the terminal."""

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """What the person types."""
        return Generation(text=await ask("you: "), policy_version="person")


class Shown:
    """A client whose turns are shown as they come, with the emotion unless it is hidden."""

    def __init__(self, client: Client, hidden: bool) -> None:
        self._client, self._hidden = client, hidden

    async def open(self) -> ClientTurn:
        """The client's opening."""
        return self._shown(await self._client.open())

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """The client's answer."""
        return self._shown(await self._client.reply(history))

    def _shown(self, turn: ClientTurn) -> ClientTurn:
        feeling = "" if self._hidden else f"  ({turn.emotion:g}{f', {turn.change:+g}' if turn.change else ''})"
        stdout().print(Text.assemble(("client: ", "magenta"), turn.text, (feeling, "dim")), soft_wrap=True)
        return turn


def _as_supporter(config: RunConfig, card: PersonaCard, hidden: bool, seed: int, out: Path | None) -> None:
    spec = assembly.client_spec(config)
    check_client(config.client, spec, [card])
    stderr.print(NOTICE, style="dim")
    with ModelPool(config, assembly.CACHE, lambda line: stderr.print(line, markup=False)) as models:
        client = Shown(models.maker(config.client, spec)(card, seed), hidden)
        plan = DialoguePlan(f"chat/{card.id}/{seed}", card, spec, seed, client, HumanSupporter())
        trajectory = asyncio.run(run_dialogue(plan))
    _tell_end(trajectory)
    if out and trajectory.turns:
        TrajectoryLog(out).append(trajectory)
        stderr.print(f"kept in {out}: attune view {out} --why", markup=False)


def _tell_end(trajectory: Trajectory) -> None:
    if trajectory.stop is Stop.ERROR and not (trajectory.error or "").startswith(Left.__name__):
        raise RunError(f"the talk broke off: {trajectory.error}")
    path = " → ".join(f"{emotion:g}" for emotion in trajectory.emotions)
    stdout().print(Text(f"{ENDINGS.get(trajectory.stop, 'You ended the talk.')} Emotion: {path}", style="bold"))


def _as_client(config: RunConfig, card: PersonaCard, adapter: Path | None, seed: int, out: Path | None) -> None:
    if adapter:
        assembly.check_adapter(adapter)
    stderr.print("You play this person; the policy sees nothing of it but what you say.", style="dim")
    role = card.model_dump(mode="json", include={"profile", "situation", "hidden_need", "need", "speech"})
    text = yaml.safe_dump(
        {key: value for key, value in role.items() if value}, sort_keys=False, allow_unicode=True, width=100
    )
    stdout().print(text, markup=False, soft_wrap=True)
    if card.opening:
        stderr.print(Text.assemble(("a first message could be: ", "dim"), card.opening), soft_wrap=True)
    with ExitStack() as stack:
        supporter = _policy(config, card, adapter, seed, stack)
        messages = asyncio.run(_talk(supporter, config.dialogue.max_turns))
    if out and messages:
        with out.open("a", encoding="utf-8") as file:
            said = [message.model_dump(mode="json") for message in messages]
            file.write(json.dumps({"card": card.id, "seed": seed, "messages": said}, ensure_ascii=False) + "\n")


def _policy(config: RunConfig, card: PersonaCard, adapter: Path | None, seed: int, stack: ExitStack) -> Supporter:
    """The policy under ``adapter``, as one dialogue's supporter."""
    model_dir = assembly.policy_dir(config, progress=lambda line: stderr.print(line, markup=False))
    templates = assembly.chat_templates(config, model_dir, [card])
    stderr.print(f"starting the policy server ({config.engine.kind})", markup=False)
    log = assembly.CACHE / "chat_server.log"
    server = stack.enter_context(closing(assembly.start_server(config, model_dir, log)))
    name = server.publish(adapter) if adapter else None
    return assembly.policy_factory(config, server, templates, name)(DialogueKey(card.id, card.language, seed))


async def _talk(supporter: Supporter, max_turns: int | None) -> list[Message]:
    """A talk in which the person speaks first, until they end it or the turn limit."""
    messages: list[Message] = []
    while max_turns is None or len(messages) < 2 * max_turns:
        try:
            messages.append(Message(speaker="client", text=await ask("you: ")))
        except Left:
            break
        reply = await supporter.reply(messages)
        stdout().print(Text.assemble(("supporter: ", "cyan"), reply.text or "(says nothing)"), soft_wrap=True)
        messages.append(Message(speaker="supporter", text=reply.text))
    return messages
