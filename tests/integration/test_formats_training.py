"""A policy that thinks, trained: packed rows agree with what was sampled, and the format is rewarded."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from envs.receipts import read_log
from envs.trajectory import Trajectory
from rewards.emotion import EmotionReward
from rewards.format import FormatReward
from tests.tiny_policy import CHATML, ByteClient, ScriptedServer, a_card, a_spec, tiny_tokenizer
from trainers.chat_template import check_template, load_tokenizer
from trainers.credit import ValueBased
from trainers.policy import Sampling
from trainers.reward_config import Gates
from trainers.rollouts import Player, Rollout, RolloutWorker
from trainers.samples import build_sample
from trainers.scoring import Scoring
from trainers.train import TrainSettings, train
from trainers.transformers_engine import TransformersEngine

OPENING = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
SETTINGS = TrainSettings(
    steps=2,
    cards_per_step=2,
    group_size=2,
    micro_batch=2,
    minibatches=1,
    sampling=Sampling(max_tokens=24, max_context=300),
)
TERMS = ((EmotionReward(), 0.8), (FormatReward("think"), 0.2))


@pytest.mark.parametrize(
    ("form", "template", "credit"),
    [
        ("think", OPENING, None),
        ("think", CHATML, None),
        ("kardia", OPENING, None),
        ("think", OPENING, ValueBased(kind="turn", reference_kl=0.04)),
    ],
)
def test_packed_dialogues_are_trained_on_as_they_were_sampled(model_dir, tmp_path, form, template, credit):
    tokenizer = load_tokenizer(model_dir)
    tokenizer.chat_template = template
    templates = {"en": check_template(tokenizer, "Be kind.", form)}
    seen: list[dict[str, Any]] = []
    given: dict[str, Any] = {"cards": [a_card()], "spec": a_spec(3), "make_client": ByteClient, "templates": templates}
    given |= {"reward": Scoring(TERMS, Gates()), "on_step": seen.append}
    settings = replace(SETTINGS, beta=0.0) if credit else SETTINGS  # ppo's divergence stands in its rewards
    given["credit"] = credit
    train(settings, model_dir=model_dir, run_dir=tmp_path, server=TransformersEngine(model_dir), **given)

    assert [line["step"] for line in seen] == [0, 1]
    for line in seen:
        assert line["max_logprob_difference"] < 1e-4 and line["error_rate"] == 0
        assert line["grad_norm"] > 0
    # An adapter that adds nothing yet is the base: the loss goes over the same segments as the likelihoods before it.
    assert abs(seen[0]["kl"]) < 1e-6 < seen[1]["kl"]
    talks = [line.trajectory for line in read_log(tmp_path / "trajectories.jsonl")]
    assert len(talks) == 8
    if template == OPENING:
        assert {len(starts(talk)) for talk in talks} == {3}
        assert any(turn.supporter.text for talk in talks for turn in talk.turns)


def starts(talk: Trajectory) -> tuple[int, ...]:
    return build_sample([turn.supporter for turn in talk.turns], 0, retold=True).starts


def step(worker: RolloutWorker, number: int) -> Rollout:
    async def played_and_scored() -> Rollout:
        played = await worker.play([(a_card().id, a_spec(2).name)] * 2, number, 0, None, asyncio.Semaphore(1))
        return await worker.score(played, 0.0)

    return asyncio.run(played_and_scored())


@pytest.mark.parametrize("required", [False, True])
def test_a_policy_that_stops_writing_the_tag_loses_reward_on_the_next_step(required):
    tokenizer = tiny_tokenizer()
    template = check_template(tokenizer, "Be kind.", "think")
    thoughtful, bare = (
        [*tokenizer.encode(f"{begun}I hear you.", add_special_tokens=False), template.end_of_turn]
        for begun in ("<think>sad</think>", "")
    )
    worker = RolloutWorker(
        server=ScriptedServer([thoughtful] * 4 + [bare] * 4),
        templates={"en": template},
        sampling=Sampling(max_tokens=64, max_context=400),
        cards={a_card().id: a_card()},
        players=[Player(a_spec(2), ByteClient)],
        reward=Scoring(((EmotionReward(), 1.0),) if required else TERMS, Gates(), form="think" if required else None),
        seed=0,
        group_size=2,
        concurrency=1,
    )
    before, after = step(worker, 0), step(worker, 1)
    emotions = [talk.final_emotion for talk in (*before.trajectories, *after.trajectories)]
    assert len(set(emotions)) == 1  # the client hears the same
    feeling = (emotions[0] or 0) / 100
    kept, lost = (feeling, 0.0) if required else (0.8 * feeling + 0.2, 0.8 * feeling)
    assert before.totals == pytest.approx([kept] * 2) and after.totals == pytest.approx([lost] * 2)
    assert lost < kept
