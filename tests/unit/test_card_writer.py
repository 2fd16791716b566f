"""Drafting cards with a language model: what is asked, what is refused and why, and that it ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import yaml

from envs.card_set import load_cards
from envs.card_writer import PROMPTS, Draft, Order, Written, read_topics, write_cards
from envs.cards import CARDS_DIR, HiddenNeed, Temperament, load_card
from envs.errors import InputError
from envs.models.model_client import ScriptedModel
from scripts import attune
from scripts.commands import cards as command
from tests.unit import dialogues

MODEL_CARD = load_card(CARDS_DIR / "en" / "bus-depot-letter.yaml")
OTHERS = [card for card in load_cards() if card.language == "en" and card.id != MODEL_CARD.id]


def draft(card=MODEL_CARD, **changes: Any) -> str:
    """A card as a model would write it."""
    raw = card.model_dump(mode="json")
    return json.dumps({key: raw[key] for key in Draft.model_fields if key != "slug"} | {"slug": "a-person"} | changes)


def written(model: ScriptedModel, existing=(), **order: Any) -> Written:
    ordered = {"topics": ["work"], "count": 1, "licence": "CC0-1.0"} | order
    return asyncio.run(write_cards(lambda: model, Order(**ordered), existing))


def test_a_draft_becomes_a_card_with_the_ordered_need_and_the_models_name_as_source():
    model = ScriptedModel([draft()], model="some-model")
    [card] = written(model).cards
    assert (card.id, card.source, card.licence, card.split) == (
        "en-a-person",
        "drafted by some-model",
        "CC0-1.0",
        "train",
    )
    assert (card.hidden_need, card.temperament) == ("dialectical_analysis", "negative")
    assert card.script.facts == MODEL_CARD.facts
    [ask] = model.asked
    assert ask.answer_schema == Draft.model_json_schema() and ask.schema_name == "persona_card"
    assert "Topic: work" in ask.messages[1].content and "English" in ask.messages[1].content


def test_needs_and_temperaments_are_dealt_so_that_every_pair_comes_up():
    model = ScriptedModel([draft(card, slug=f"p{number}") for number, card in enumerate(OTHERS[:24])])
    found = written(model, count=24, topics=["work", "home"])
    assert len({(card.hidden_need, card.temperament) for card in found.cards}) == 24
    topics = [ask.messages[1].content.split("Topic: ")[1].split("\n")[0] for ask in model.asked]
    assert topics == ["work", "home"] * 12
    assert len({ask.seed for ask in model.asked}) == 24


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("I'd rather not.", "it is no JSON object"),
        ("[]", "it is no JSON object"),
        (draft(inertia=2), "card: inertia: Input should be less than or equal to 1"),
        (draft(mood="sad"), "card: mood: is not a known key"),
        (draft(facts=list(reversed(json.loads(draft())["facts"]))), "facts must come in the order"),
        (draft(slug="No Slug"), "card: slug: String should match pattern"),
    ],
)
def test_a_bad_draft_goes_back_with_its_cause_and_the_next_may_do(text, cause):
    model = ScriptedModel([text, f"Here it is:\n```json\n{draft()}\n```"])
    found = written(model)
    assert len(found.cards) == 1 and found.unfilled == 0
    [refused] = found.rejected
    assert (refused.topic, refused.attempt) == ("work", 1) and cause in refused.cause
    first, second = model.asked
    assert (first.attempt, second.attempt) == (0, 1) and first.seed == second.seed
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "user"]
    assert cause in second.messages[-1].content


def test_a_draft_that_is_like_an_existing_card_or_an_earlier_draft_is_refused():
    model = ScriptedModel([draft(), draft(OTHERS[0]), draft(OTHERS[0], slug="again"), draft(OTHERS[1])])
    found = written(model, existing=[MODEL_CARD], count=2)
    assert [refused.cause.split(";")[0] for refused in found.rejected] == [
        f"it is too like {MODEL_CARD.id} (likeness 1.00)",
        "it is too like en-a-person (likeness 1.00)",
    ]
    assert [card.id for card in found.cards] == ["en-a-person", "en-a-person-2"]


def test_a_person_who_was_only_renamed_is_refused_too():
    renamed = json.loads(draft())["profile"] | {"name": "Gerrit Vos", "age": 57}
    found = written(ScriptedModel([draft(profile=renamed)]), existing=[MODEL_CARD], attempts=1)
    assert found.cards == [] and "likeness 0.9" in found.rejected[0].cause


def test_the_attempts_are_bounded_and_the_next_card_is_still_asked_for():
    model = ScriptedModel(["no", "no", draft()])
    found = written(model, count=2, attempts=2)
    assert (len(found.cards), found.unfilled, len(model.asked)) == (1, 1, 3)
    assert [refused.attempt for refused in found.rejected] == [1, 2]


def test_a_model_that_gives_no_answer_is_not_asked_for_the_rest():
    model = ScriptedModel([draft()])
    found = written(model, count=5, attempts=2)
    assert (len(found.cards), found.unfilled, len(model.asked)) == (1, 4, 3)
    assert all("the model gave no answer: the script holds 1" in refused.cause for refused in found.rejected)


def test_each_card_is_kept_as_soon_as_it_is_done():
    kept = []
    model = ScriptedModel([draft(), "no", "no", "no"])
    asyncio.run(write_cards(lambda: model, Order(["work"], 2, "CC0-1.0"), keep=lambda card: kept.append(card.id)))
    assert kept == ["en-a-person"]


def test_every_need_temperament_and_language_has_its_words_in_the_prompt():
    prompts = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    assert set(prompts["needs"]) == set(HiddenNeed) and set(prompts["temperaments"]) == set(Temperament)
    assert set(prompts["languages"]) == {"en", "zh"}


def test_topics_are_lines_and_a_file_without_any_is_refused(tmp_path):
    path = tmp_path / "topics.txt"
    path.write_text("# ours\n\n a lost job \nmoving away\n", encoding="utf-8")
    assert read_topics(path) == ["a lost job", "moving away"]
    path.write_text("# none\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no topic"):
        read_topics(path)
    with pytest.raises(InputError, match="can't be read"):
        read_topics(tmp_path / "none.txt")


def run_command(tmp_path, monkeypatch, texts: list[str], *more: str) -> int:
    (tmp_path / "topics.txt").write_text("work\n", encoding="utf-8")
    model = ScriptedModel(texts)
    monkeypatch.setattr(command, "model_door", lambda *asked: lambda: model)
    said = [
        "--topics",
        str(tmp_path / "topics.txt"),
        "--count",
        "2",
        "--model",
        "m",
        "--base-url",
        "http://127.0.0.1:9/v1",
    ]
    return attune.main(["cards", "write", *said, "--out", str(tmp_path / "out"), *more])


def test_the_command_writes_the_drafts_and_says_what_was_refused(tmp_path, monkeypatch, capsys):
    one, two = dialogues.card("en-one"), OTHERS[0]
    texts = [draft(one), draft(one, opening="Hello."), draft(two, slug="a-second")]
    known = ("--existing", str(CARDS_DIR / "zh"), "--licence", "CC0-1.0", "--json")
    assert run_command(tmp_path, monkeypatch, texts, *known) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cards"] == ["en-a-person", "en-a-second"] and len(told["rejected"]) == 1
    assert [card.id for card in load_cards([tmp_path / "out"])] == told["cards"]


def test_the_command_asks_for_a_licence_and_ends_with_1_when_cards_are_missing(tmp_path, monkeypatch, capsys):
    assert run_command(tmp_path, monkeypatch, []) == 2
    assert "--licence: is missing" in capsys.readouterr().err
    assert (
        run_command(
            tmp_path, monkeypatch, [draft(OTHERS[0])], "--licence", "CC0-1.0", "--existing", str(CARDS_DIR / "zh")
        )
        == 1
    )
    out = capsys.readouterr().out
    assert "1 of 2 cards written" in out and "refused: work, attempt 1: the model gave no answer" in out
