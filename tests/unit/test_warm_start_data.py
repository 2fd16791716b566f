"""Dialogues to imitate: which rows are read, which are refused and how, and which of their tokens are trained on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import HELD_OUT, TRAINED, cards_for

from envs.cards import PersonaCard
from envs.client_spec import load_spec
from envs.clients import make_client
from envs.dialogue import DialoguePlan, run_dialogues
from envs.errors import InputError
from envs.receipts import TrajectoryLog
from envs.supporters import GoodSupporter
from envs.trajectory import Stop, Trajectory
from tests.tiny_policy import tiny_tokenizer
from tests.unit.foreign_rows import KARDIA
from trainers.chat_template import check_template
from trainers.warm_start_config import WarmStart, warm_start_conflicts
from trainers.warm_start_data import Example, Exchange, Who, data_record, imitation, imitations, read_examples

SPEC = load_spec("appraisal-v1")
TRAINING, OTHERS = cards_for(TRAINED), cards_for(HELD_OUT)
WHO = Who.of([*TRAINING, *OTHERS], TRAINING, ["en"])
HELLO = [{"role": "user", "content": "It rained."}, {"role": "assistant", "content": "All day?"}]
TOKENIZER = tiny_tokenizer()
TEMPLATE = check_template(TOKENIZER, "Be kind.")


def written(folder: Path, *rows: Any) -> str:
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(source: str, who: Who = WHO, **changes: Any) -> list[Example]:
    return read_examples(WarmStart(data=[source], **changes), who, seed=0)


def refusal(folder: Path, *rows: Any, who: Who = WHO) -> str:
    with pytest.raises(InputError) as caught:
        read(written(folder, *rows), who)
    return str(caught.value)


def played(card: PersonaCard, seed: int = 1) -> Trajectory:
    plan = DialoguePlan(f"talk/{card.id}", card, SPEC, seed, make_client(card, SPEC, seed), GoodSupporter("en", seed))
    return asyncio.run(run_dialogues([plan], concurrency=1))[0]


def recorded(folder: Path, *talks: Trajectory) -> str:
    TrajectoryLog(folder / "trajectories.jsonl").append(*talks)
    return str(folder / "trajectories.jsonl")


def test_chat_messages_become_exchanges_without_their_system_message_and_without_an_unanswered_end(tmp_path):
    rows = [{"messages": HELLO}, {"messages": [{"role": "system", "content": "You are X."}, *HELLO, HELLO[0]]}]
    first, second = read(written(tmp_path, *rows))
    assert first.exchanges == second.exchanges == (Exchange("It rained.", "All day?"),)
    assert (first.where, first.language, first.card) == (f"{tmp_path}/talks.jsonl:1", "en", None)


def test_a_kardia_row_keeps_the_four_spans_of_its_replies(tmp_path):
    spans = "<|understanding_begin|>hurt<|understanding_end|><|response_begin|>That must have hurt.<|response_end|>"
    messages = [*KARDIA["messages"][:2], {"role": "assistant", "content": spans}]
    (example,) = read(written(tmp_path, KARDIA | {"messages": messages}))
    assert example.exchanges == (Exchange("They sang on Friday. I heard it from the street.", spans),)


def test_a_recorded_dialogue_is_imitated_reply_by_reply_and_names_its_card(tmp_path):
    talk = played(TRAINING[0])
    (example,) = read(recorded(tmp_path, talk))
    assert [one.reply for one in example.exchanges] == [turn.supporter.text for turn in talk.turns]
    assert [one.said for one in example.exchanges] == [talk.messages[0].text, *(t.client.text for t in talk.turns[:-1])]
    assert example.card == (TRAINING[0].id, TRAINING[0].hash)


def test_recorded_dialogues_that_broke_off_ended_too_low_or_were_cut_off_are_left_out(tmp_path):
    good = played(TRAINING[0])
    assert good.final_emotion and good.final_emotion > 50
    broken = good.model_copy(update={"stop": Stop.ERROR, "error": "the engine failed"})
    turn = good.turns[0]
    cut = turn.model_copy(update={"supporter": turn.supporter.model_copy(update={"truncated": True})})
    short = good.model_copy(update={"turns": (cut, *good.turns[1:])})
    source = recorded(tmp_path, good, broken, short, played(TRAINING[1]))
    assert [example.where for example in read(source)] == [f"{source}:1", f"{source}:4"]
    least = good.final_emotion
    assert all(
        f"{source}:1" == one.where or (one.card or "")[0] == TRAINING[1].id for one in read(source, min_emotion=least)
    )
    (tmp_path / "alone").mkdir()
    with pytest.raises(InputError, match=r"hold no dialogue to imitate; .*lower warm_start\.min_emotion"):
        read(recorded(tmp_path / "alone", broken), min_emotion=1)


def test_a_changed_record_is_refused_by_its_receipts(tmp_path):
    source = Path(recorded(tmp_path, played(TRAINING[0])))
    source.write_text(source.read_text(encoding="utf-8").replace("final", "first").replace("you", "You", 1), "utf-8")
    with pytest.raises(InputError, match=r"trajectories\.jsonl:1: "):
        read(str(source))


def test_a_held_out_card_is_refused_with_file_and_line(tmp_path):
    source = recorded(tmp_path, played(TRAINING[0]), played(OTHERS[0]))
    with pytest.raises(
        InputError, match=rf"{source}:2: is a dialogue with {OTHERS[0].id}, a card that training may not"
    ):
        read(source)


def test_a_card_that_is_not_the_runs_own_is_refused(tmp_path):
    only = Who.of([TRAINING[0]], [TRAINING[0]], ["en"])
    source = recorded(tmp_path, played(TRAINING[1]))
    with pytest.raises(InputError, match=r":1: is a dialogue with .*, which as it was is no training card of this"):
        read(source, only)


def test_a_chat_row_that_names_its_card_is_held_to_it(tmp_path):
    (example,) = read(written(tmp_path, {"messages": HELLO, "card_id": TRAINING[0].id}))
    assert example.card == (TRAINING[0].id, TRAINING[0].hash)
    told = refusal(tmp_path, {"messages": HELLO}, {"messages": HELLO, "card_id": OTHERS[1].id})
    assert f"talks.jsonl:2: is a dialogue with {OTHERS[1].id}, a card that training may not see; mend or remove" in told


def test_a_chat_row_that_opens_as_a_held_out_card_does_or_tells_its_situation_is_refused(tmp_path):
    opening = {"role": "user", "content": f"  {(OTHERS[0].opening or '').upper()} "}
    assert f":1: tells of {OTHERS[0].id}" in refusal(tmp_path, {"messages": [opening, HELLO[1]]})
    free = OTHERS[1].model_copy(update={"situation": "The choir sang without me for the first time.\nFeeling: lonely"})
    who = Who.of([*TRAINING, free], TRAINING, ["en"])
    assert f":2: tells of {free.id}" in refusal(tmp_path, {"messages": HELLO}, KARDIA, who=who)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hello"}, "messages: a dialogue belongs here, as"),
        ({"messages": "hello"}, "messages: a dialogue belongs here, as"),
        ({"messages": HELLO[1:]}, "message 1: has the role 'assistant' where 'user' belongs"),
        ({"messages": [HELLO[0], HELLO[0]]}, "message 2: has the role 'user' where 'assistant' belongs"),
        (
            {"messages": [*HELLO, {"role": "tool", "content": "x"}]},
            "message 3: has the role 'tool' where 'user' belongs",
        ),
        ({"messages": [HELLO[0], {"role": "assistant", "content": " "}]}, "message 2: content: a text belongs here"),
        ({"messages": [HELLO[0], {"role": "assistant"}]}, "message 2: content: a text belongs here"),
        ({"messages": ["hello"]}, "message 1: needs a role and a content"),
        ({"messages": HELLO[:1]}, "has no message of the assistant"),
        ({"messages": HELLO, "language": "zh"}, "language: 'zh' is not among the run's en"),
    ],
)
def test_a_malformed_row_is_refused_with_file_line_and_remedy(tmp_path, row, said):
    told = refusal(tmp_path, {"messages": HELLO}, row)
    assert told.startswith(f"{tmp_path}/talks.jsonl:2: ") and said in told


def test_a_run_in_two_languages_wants_each_row_to_name_its_own(tmp_path):
    who = Who.of(TRAINING, TRAINING, ["en", "zh"])
    assert [one.language for one in read(written(tmp_path, {"messages": HELLO, "language": "zh"}), who)] == ["zh"]
    assert "talks.jsonl:1: language: is missing; say which of en, zh" in refusal(tmp_path, {"messages": HELLO}, who=who)


def test_as_many_dialogues_as_the_config_wants_are_drawn_with_the_seed(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"It rained {n} days."}, HELLO[1]]} for n in range(9)]
    source = written(tmp_path, *rows)
    assert len(read(source)) == 9
    drawn = [read_examples(WarmStart(data=[source], max_dialogues=4), WHO, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and all(len(one) == 4 for one in drawn)
    places = [int(one.where.rpartition(":")[2]) for one in drawn[0]]
    assert places == sorted(places)


def test_only_replies_and_the_end_of_turn_behind_each_are_trained_on():
    example = Example("t:1", "en", (Exchange("ab", "Hm."), Exchange("c", "So?")))
    made = imitation(example, TEMPLATE, max_context=200, max_reply=20)
    assert made is not None
    assert TOKENIZER.decode(made.ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nHm.<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nSo?<|im_end|>"
    )
    trained = [TOKENIZER.decode([token]) for token, ours in zip(made.ids, made.mask, strict=True) if ours]
    assert trained == ["H", "m", ".", "<|im_end|>", "S", "o", "?", "<|im_end|>"]
    # 1 + "system\n" 7 + "Be kind." 8 + 1 + 1, then 1 + "user\n" 5 + 2 + 1 + 1, then 1 + "assistant\n" 10: 39
    assert made.mask[:39] == [0] * 39 and made.mask[39:43] == [1] * 4
    assert len(made.ids) == 39 + 4 + (1 + 1 + 5 + 1 + 1 + 1 + 1 + 10) + 4


words = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_the_ids_are_those_of_a_rollout_that_says_the_same(talk):
    example = Example("t:1", "en", tuple(Exchange(said, reply.strip()) for said, reply in talk))
    made = imitation(example, TEMPLATE, max_context=10_000, max_reply=1_000)
    assert made is not None
    ids: list[int] = []
    for number, one in enumerate(example.exchanges):
        ids += TEMPLATE.following(one.said) if number else TEMPLATE.opening(one.said)
        ids += [*TOKENIZER.encode(one.reply, add_special_tokens=False), TEMPLATE.end_of_turn]
    assert made.ids == ids and len(made.mask) == len(ids)
    replies = sum(len(TOKENIZER.encode(one.reply, add_special_tokens=False)) + 1 for one in example.exchanges)
    assert sum(made.mask) == replies


def test_a_dialogue_is_used_up_to_the_last_reply_that_fits():
    example = Example("t:1", "en", (Exchange("ab", "Hm."), Exchange("c", "much too long a reply")))
    assert imitation(example, TEMPLATE, 200, 5) == imitation(
        Example("t:1", "en", example.exchanges[:1]), TEMPLATE, 200, 5
    )
    assert imitation(example, TEMPLATE, max_context=39 + 20, max_reply=20) is not None
    assert imitation(example, TEMPLATE, max_context=39 + 19, max_reply=20) is None
    with pytest.raises(InputError, match=r"no first reply fits into 3 tokens \(policy\.max_new_tokens\)"):
        imitations([example], {"en": TEMPLATE}, 200, 3)


def test_a_reply_that_holds_a_mark_of_a_turn_is_refused_and_one_in_a_clients_words_is_text():
    smuggled = Example("talks.jsonl:7", "en", (Exchange("ab", "Hm.<|im_end|>"),))
    with pytest.raises(
        InputError, match=r"talks\.jsonl:7: exchange 1: the reply contains <\|im_end\|>, which marks turns"
    ):
        imitation(smuggled, TEMPLATE, 200, 20)
    made = imitation(Example("t:1", "en", (Exchange("<|im_end|>", "Hm."),)), TEMPLATE, 200, 20)
    assert made and sum(made.mask) == 4 and made.ids.count(TEMPLATE.end_of_turn) == 3


def test_a_thought_in_a_reply_is_the_token_that_the_policy_would_sample():
    made = imitation(Example("t:1", "en", (Exchange("ab", "<think>x</think>Hm."),)), TEMPLATE, 200, 20)
    assert made and sum(made.mask) == 1 + 1 + 1 + 3 + 1


def test_the_record_of_the_data_counts_dialogues_replies_and_tokens():
    name, digest = TRAINING[0].id, TRAINING[0].hash
    examples = [
        Example("t:1", "en", (Exchange("ab", "Hm."), Exchange("c", "So?")), (name, digest)),
        Example("t:2", "en", (Exchange("ab", "a reply that does not fit"),)),
    ]
    made = imitations(examples, {"en": TEMPLATE}, 200, 5)
    told = data_record(WarmStart(data=["/home/me/t.jsonl", "hf:some/talks"]), examples, made)
    assert told["data"] == ["t.jsonl", "hf:some/talks"]
    assert (told["dialogues"], told["imitated"], told["replies"], told["without_card"]) == (2, 1, 2, 1)
    assert (told["tokens"], told["trained_tokens"]) == (68, 8)
    assert told["cards"] == {name: digest}
    changed = [examples[0], Example("t:2", "en", (Exchange("ab", "a reply that does not fit."),))]
    assert data_record(WarmStart(data=["t.jsonl"]), changed, made)["sha256"] != told["sha256"]


def test_what_a_warm_start_can_not_be_is_told_with_key_and_remedy():
    assert warm_start_conflicts(WarmStart(), 8, 1) == []
    assert warm_start_conflicts(WarmStart(data=["x"], batch=16), 8, 2) == []
    (told,) = warm_start_conflicts(WarmStart(data=["x"], batch=12), 8, 1)
    assert told.startswith("warm_start.batch: 12 is no multiple of trainer.micro_batch x training devices (8)")
    (told,) = warm_start_conflicts(WarmStart(epochs=3), 8, 1)
    assert told == "warm_start.epochs: says nothing without warm_start.data; name dialogues there"
