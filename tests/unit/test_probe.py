"""Probing: cheap policies stay low with the embedded client, a good supporter doesn't, and anyone can try."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from envs.card_set import load_cards
from envs.client_spec import load_spec
from envs.errors import InputError
from envs.probes import DEGENERATE_BUILTIN, Echo, FixedPolicy, Parrot, QuoteFrame, keywords, load_policies
from envs.receipts import read_log
from envs.trajectory import Message
from scripts.attune import main
from scripts.commands.probe import SHIPPED, from_code, from_replies, score

ROOT = Path(__file__).resolve().parents[2]
CARDS = [card for card in load_cards() if card.split == "test"]
FIXED = load_policies(SHIPPED)


@pytest.fixture(scope="module")
def reached() -> dict:
    """What every shipped policy reaches over the test cards, by name."""
    results = score(from_replies(FIXED) + from_code(), CARDS, load_spec("appraisal-v1"), seeds=1)
    return {result.name: result.evaluation for result in results}


@pytest.mark.parametrize("name", [*(policy.name for policy in FIXED), *DEGENERATE_BUILTIN])
def test_a_degenerate_policy_ends_below_forty_on_average(reached, name):
    assert reached[name].errors == 0
    assert reached[name].mean_final_emotion.mean < 40


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_good_supporter_ends_above_seventy_five_in_each_language(language):
    own = [card for card in CARDS if card.language == language]
    (good,) = [contender for contender in from_code() if contender.name == "good_supporter"]
    (result,) = score([good], own, load_spec("appraisal-v1"), seeds=1)
    assert result.evaluation.mean_final_emotion.mean is not None
    assert result.evaluation.mean_final_emotion.mean > 75


def test_a_good_supporter_reaches_full_relief_with_some_clients(reached):
    assert reached["good_supporter"].success_rate.mean > 0
    assert max(outcome.final_emotion for outcome in reached["good_supporter"].outcomes) == 100


def test_the_shipped_probes_are_many_and_some_are_chinese():
    assert sum(policy.language != "zh" for policy in FIXED) >= 16
    assert sum(policy.language == "zh" for policy in FIXED) >= 8


def _heard(text: str) -> list[Message]:
    return [
        Message(speaker="client", text="Hello."),
        Message(speaker="supporter", text="Hi."),
        Message(speaker="client", text=text),
    ]


def test_reactive_probes_hand_back_the_last_message():
    said = _heard("My sister hasn't answered the letter since February.")
    replies = [asyncio.run(probe.reply(said)).text for probe in (Echo(), Parrot("en"), QuoteFrame("en"))]
    assert replies[0] == said[-1].text
    assert replies[1] == "I understand, sister, answered, february, that is all so hard."
    assert replies[2] == f'You said: "{said[-1].text}". That must be hard.'


def test_keywords_are_the_longest_words_in_the_order_of_the_text():
    assert keywords("The hospital rang my grandmother about surgery.", "en") == ["hospital", "grandmother", "surgery"]
    assert keywords("昨天医院打来电话，说妈妈要住院。", "zh") == ["昨天医院", "说妈妈要"]
    assert keywords("...", "en") == []


def test_every_wrong_line_of_a_probe_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "probes.jsonl"
    lines = [
        '{"name": "a", "replies": ["x"]}',
        "",
        '{"name": "b", "replies": []}',
        "[1]",
        "{",
        '{"name": "a", "replies": ["y"]}',
        '{"name": "c", "replies": ["y"], "language": "fr"}',
        '{"name": "d", "reply": ["y"]}',
        '{"name": "e", "replies": "y"}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_policies(path)
    named = {int(line.removeprefix(f"{path}:").split(":")[0]) for line in str(caught.value).splitlines()}
    assert named == {3, 4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_probe_file_without_a_policy_is_refused_with_an_example(tmp_path, text):
    path = tmp_path / "empty.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="holds no policy; write one a line"):
        load_policies(path)


def test_a_line_separator_inside_a_reply_ends_no_line(tmp_path):
    path = tmp_path / "probes.jsonl"
    path.write_text('\ufeff{"name": "a", "replies": ["one\u2028two"]}\n', encoding="utf-8")
    assert load_policies(path) == [FixedPolicy(name="a", replies=("one\u2028two",))]


def test_a_policy_with_a_language_plays_the_cards_of_that_language_only():
    pair = [next(card for card in CARDS if card.language == language) for language in ("en", "zh")]
    policies = [FixedPolicy(name="all", replies=("嗯。",)), FixedPolicy(name="zh", replies=("嗯。",), language="zh")]
    results = score(from_replies(policies), pair, load_spec("appraisal-v1"), seeds=2)
    assert [result.evaluation.dialogues for result in results] == [4, 2]
    assert {outcome.card_id for outcome in results[1].evaluation.outcomes} == {pair[1].id}


def _probe(tmp_path: Path, *options: str) -> int:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"name": "warm", "replies": ["I am here for you."]}\n', encoding="utf-8")
    return main(["probe", "--client", "appraisal-v1", "--replies", str(path), "--language", "en", *options])


def test_the_command_prints_one_json_object(tmp_path, capsys):
    assert _probe(tmp_path, "--json") == 0
    (policy,) = json.loads(capsys.readouterr().out)["policies"]
    english = [card for card in CARDS if card.language == "en"]
    assert policy["name"] == "warm"
    assert policy["dialogues"] == len(english)
    assert policy["ci95"][0] <= policy["mean_final_emotion"] <= policy["ci95"][1]
    assert 0 <= policy["success_rate"] <= policy["failure_rate"] <= 1


def test_the_dialogues_are_kept_with_receipts_and_nothing_is_written_over(tmp_path, capsys):
    assert _probe(tmp_path, "--out", str(tmp_path / "kept"), "--json") == 0
    shown = json.loads(capsys.readouterr().out)["policies"]
    for policy in shown:
        kept = [line.trajectory for line in read_log(tmp_path / "kept" / policy["name"] / "trajectories.jsonl")]
        assert len(kept) == policy["dialogues"]
    assert _probe(tmp_path, "--out", str(tmp_path / "kept")) == 2
    assert "an evaluation lies here already" in capsys.readouterr().err.replace("\n", " ")


def test_a_policy_whose_name_is_a_path_can_not_be_kept(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"name": "../mine", "replies": ["Hm."]}\n', encoding="utf-8")
    assert main(["probe", "--replies", str(path), "--out", str(tmp_path / "kept")]) == 2
    assert "give it a name without slashes" in capsys.readouterr().err.replace("\n", " ")


def test_the_command_prints_a_table_for_people(tmp_path, capsys):
    assert _probe(tmp_path) == 0
    assert "warm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--replies", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--client", "nobody-v1"], "known specs: appraisal-v1"),
        (["--cards", "nowhere"], "nowhere: there is no such file or folder"),
        (["--cards", "configs/cards/zh", "--language", "en"], "change --split, --language or --cards"),
    ],
)
def test_bad_input_ends_with_status_two_and_a_remedy(tmp_path, capsys, monkeypatch, options, says):
    monkeypatch.chdir(ROOT)
    assert _probe(tmp_path, "--json", *options) == 2
    assert says in json.loads(capsys.readouterr().out)["error"]


def test_probing_loads_no_torch(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"name": "warm", "replies": ["I am here for you."]}\n', encoding="utf-8")
    code = (
        "import sys; from scripts.attune import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'trl', 'vllm'} & set(sys.modules); "
        "print(status, sorted(heavy), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "probe", "--replies", str(path), "--language", "zh", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.strip().splitlines()[-1] == "0 []"
