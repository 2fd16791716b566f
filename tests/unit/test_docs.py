"""What README and docs say of the code is what the code says: keys, defaults, numbers, commands, links, examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

from envs.cards import Act, HiddenNeed, PersonaCard, Temperament
from envs.client_spec import load_spec
from envs.models.endpoint_spec import EndpointSpec
from rewards.follow_up import SCALE
from rewards.registry import REWARDS
from rewards.shaping import LengthBounds, RepetitionBounds
from rewards.verdicts import Cause
from scripts.attune import app
from trainers.client_config import ServedModel
from trainers.config import RunConfig
from trainers.reward_config import JudgeTerm

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NONE = "none"


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(text: str, columns: int) -> Iterator[list[str]]:
    """The cells of each table row that begins with a code span and has so many columns."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if line.startswith("| `") and len(cells) == columns:
            yield cells


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def keys_and_defaults(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from keys_and_defaults(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield from keys_and_defaults(value[0], f"{prefix}{name}.0.")
        else:
            yield prefix + name, section.model_dump(mode="json")[name]


def test_the_configuration_page_names_every_key_with_its_default_and_no_other() -> None:
    described = page("docs/configuration.md").split("## What can't be combined")[0]
    written = {key.strip("`"): default.strip("`") for key, default, _ in rows(described, 3)}
    assert written == {
        key: NONE if default is None else json.dumps(default) for key, default in keys_and_defaults(RunConfig())
    }


def test_the_page_on_played_clients_names_every_key_of_a_model_with_its_default_and_no_other() -> None:
    written = {
        key.strip("`"): default.strip("`")
        for key, default, _ in rows(page("docs/client_models.md"), 3)
        if key.startswith(("`serve.", "`endpoint."))
    }
    described = {f"serve.{key}": json.dumps(value) for key, value in keys_and_defaults(ServedModel())}
    endpoint = EndpointSpec(base_url="http://127.0.0.1/v1", model="m")
    described |= {f"endpoint.{key}": json.dumps(value) for key, value in keys_and_defaults(endpoint)}
    described |= {"endpoint.base_url": "required", "endpoint.model": "required"}
    assert written == {key: NONE if value == "null" else value for key, value in described.items()}


def test_the_page_on_judges_names_every_key_of_a_judge_with_its_default_and_no_other() -> None:
    section = page("docs/judges.md").split("## In a run")[1].split("\n## ")[0]
    written = {key.strip("`"): default.strip("`") for key, default, _ in rows(section, 3)}
    fields = JudgeTerm.model_fields.items()
    defaults = {name: "required" if field.is_required() else json.dumps(field.default) for name, field in fields}
    assert written == {name: NONE if default == "null" else default for name, default in defaults.items()}


def test_every_key_that_a_page_names_exists() -> None:
    known = {key for key, _ in keys_and_defaults(RunConfig())} | set(RunConfig.model_fields)
    known |= {"rewards.0", "rewards.N.name"}
    sections = "|".join(name for name in RunConfig.model_fields if name not in ("cards", "client"))
    named = {
        (path.name, key)
        for path in PAGES
        for key in re.findall(rf"`((?:{sections})\.[a-z_0-9N.]+)(?:=[^`]*|: [^`]*)?`", path.read_text(encoding="utf-8"))
        if not key.endswith((".py", ".json", ".jsonl", ".yaml", ".log"))
    }
    assert len(named) > 20
    assert {(name, key) for name, key in named if key not in known} == set()


def flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[float]]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield prefix + key, value
        else:
            yield prefix + key, [value]


def test_the_client_page_shows_the_numbers_of_its_spec() -> None:
    rules = load_spec("appraisal-v1").embedded
    described = page("docs/client.md").split("<!-- numbers -->")[1].split("<!-- /numbers -->")[0]
    by_name = {cells[0].strip("`"): cells[1:] for cells in rows(described, 4)}
    for act, by_phase in rules.strategies.items():
        assert [float(cell) for cell in by_name[act.value]] == list(by_phase.model_dump().values())
    for need, rule in rules.needs.items():
        signals = ", ".join(f"`{signal.value}`" for signal in rule.signals)
        assert by_name[need.value] == [signals, rule.since, f"{rule.push:g}"]
    for temperament, rule in rules.temperaments.items():
        assert [float(cell) for cell in by_name[temperament.value]] == [rule.warmth, rule.harm, rule.patience]
    tables = {"strategies", "needs", "temperaments", "reactions", "phase_facts"}
    numbers = {key.strip("`"): [float(n) for n in value.split(", ")] for key, value, _ in rows(described, 3)}
    assert numbers == dict(flat(rules.model_dump(mode="json", exclude=tables)))


def test_the_probe_table_on_the_client_page_names_every_policy_that_comes_with_attune() -> None:
    table = page("docs/client.md").split("<!-- probe -->")[1].split("<!-- /probe -->")[0]
    shipped = [json.loads(line)["name"] for line in page("configs/probes/degenerate.jsonl").splitlines() if line]
    shown = re.findall(r"^(\w+) +\d+\.\d ", table, re.MULTILINE)
    assert set(shipped) - set(shown) == set()


def test_the_cards_page_names_every_key_act_need_and_temperament() -> None:
    text = page("docs/cards.md")
    named = {key for cells in rows(text, 2) for key in re.findall(r"`(?:(\w+)\.)?\.?\w+`|`(\w+)`", cells[0])}
    words = set(re.findall(r"`\.?([a-z_.]+)`", text)) | {part for pair in named for part in pair}
    heads = {word.split(".")[0] for word in words}
    assert set(PersonaCard.model_fields) - heads == set()
    assert {value.value for kind in (Act, HiddenNeed, Temperament) for value in kind} - words == set()


def test_the_card_on_the_cards_page_is_the_file_that_it_is_said_to_be() -> None:
    text = page("docs/cards.md")
    assert code_blocks(text, "yaml") == [page("configs/cards/en/bus-depot-letter.yaml")]
    assert PersonaCard.model_validate(yaml.safe_load(code_blocks(text, "yaml")[0])).id in text


def test_the_configuration_in_the_readme_is_valid() -> None:
    (snippet,) = code_blocks(page("README.md"), "yaml")
    config = RunConfig.model_validate(yaml.safe_load(snippet))
    assert config.rewards and {term.name for term in config.rewards} <= set(REWARDS)


def test_the_rewards_page_names_every_reward_and_the_default_bounds() -> None:
    text = page("docs/rewards.md")
    assert [cells[0].strip("`") for cells in rows(text, 3)] == list(REWARDS)
    length, repetition = LengthBounds(), RepetitionBounds()
    assert f"0 up to {length.least} words, rising to 1 at {length.low}; 1 up to {length.high}; " in text
    assert f"falling to 0 at {length.most}." in text
    assert f"1 up to {repetition.free:g}, falling to 0 at {repetition.full:g}.".replace("0.", ".") in text
    assert f"a scale of {SCALE:g} nats" in text


def test_the_judges_page_names_every_cause_and_counts_the_malformed_answers() -> None:
    text = page("docs/judges.md")
    named = {cause for cells in rows(text, 2) for cause in re.findall(r"`(\w+)`", cells[0])}
    assert {cause.value for cause in Cause} <= named
    assert f"{len(page('tests/data/malformed_verdicts.jsonl').splitlines())} malformed answers" in text


@cache
def groups() -> frozenset[str]:
    """The commands that have sub-commands."""
    root = get_command(app)
    return frozenset(
        name
        for name in root.list_commands(None)  # type: ignore[attr-defined, arg-type]
        if hasattr(root.get_command(None, name), "commands")  # type: ignore[attr-defined, arg-type]
    )


def commands_in(path: Path) -> set[tuple[str, ...]]:
    """(command, sub-command or "", options) of every ``attune ...`` in code on a page."""
    text = path.read_text(encoding="utf-8")
    blocks = "\n".join(code_blocks(text, "(?:bash|text)"))
    spans = [*re.findall(r"`([^`\n]+)`", text), *blocks.split("\n")]
    found = set()
    for span in spans:
        for call in re.findall(r"(?:^|\$ |-m scripts\.)attune ([a-z][^#│]*)", span.strip()):
            words = call.split()
            sub = words[1] if words[0] in groups() and len(words) > 1 else ""
            found.add((words[0], sub, *(word for word in words if word.startswith("--"))))
    return found


def test_every_command_and_option_that_a_page_names_exists() -> None:
    calls = {call for path in PAGES for call in commands_in(path)}
    assert {name for name, *_ in calls} == set(get_command(app).list_commands(None))  # type: ignore[attr-defined, arg-type]
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    for name, sub, *options in sorted(calls):
        helped = runner.invoke(app, [word for word in (name, sub) if word] + ["--help"])
        assert helped.exit_code == 0, (name, sub)
        assert [option for option in options if option not in helped.output] == [], (name, sub)


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    named = {target for path in PAGES for target in re.findall(r"(?:`|^)make ([a-z]+)", path.read_text("utf-8"), re.M)}
    assert {"demo", "test"} <= named <= targets


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_of_the_tree_that_a_page_names_exists(path: Path) -> None:
    folders = "envs|rewards|trainers|scripts|configs|constraints|tests|docs"
    named = re.findall(rf"(?:`|\s)((?:{folders})/[\w./-]+\w/?)(?=[`\s)])", path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
