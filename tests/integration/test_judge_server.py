"""A judge over a real connection: the server fails a fifth of its requests, and the record comes back without it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from envs.cards import CARDS_DIR, load_card
from envs.models.endpoint import Endpoint
from envs.models.endpoint_spec import EndpointSpec
from envs.trajectory import ClientTurn, Generation, Stop, Trajectory, Turn
from rewards.judge import Judge, replayed
from rewards.judgments import JudgeRules, Judgment
from rewards.rubric import load_rubric
from rewards.rubric_reward import score_of
from tests.scripted_server import Faults, ScriptedServer

pytestmark = pytest.mark.integration

WHO = load_card(CARDS_DIR / "en" / "bus-depot-letter.yaml")
DIALOGUES, TURNS = 12, 4


def dialogue(number: int) -> Trajectory:
    """A talk in which every reply is of its own."""

    def client(text: str) -> ClientTurn:
        return ClientTurn(text=text, emotion=40, written_change=0, change=0)

    turns = tuple(
        Turn(
            supporter=Generation(text=f"What you told me in talk {number} at turn {turn} stays with me."),
            client=client("Well."),
        )
        for turn in range(TURNS)
    )
    return Trajectory(
        dialogue_id=f"judged/{number}",
        card_id=WHO.id,
        card_hash=WHO.hash,
        spec="appraisal-v1",
        spec_hash="0" * 64,
        seed=number,
        opening=client("They sent a letter."),
        turns=turns,
        stop=Stop.TURN_LIMIT,
    )


def verdict(request: dict[str, Any]) -> str:
    """A level from the number of the talk, with the last reply for evidence."""
    schema = request["response_format"]["json_schema"]["schema"]
    shown = re.findall(r"What you told me in talk (\d+) at turn \d+ stays with me\.", request["messages"][1]["content"])
    quote = re.findall(r"What you told me .*? me\.", request["messages"][1]["content"])[-1]
    level = 1 + int(shown[-1]) % 5
    axis = {"evidence": quote, "reason": "It holds on to what was said.", "level": level}
    return json.dumps({name: axis for name in schema["properties"]})


def test_dialogues_are_judged_over_a_faulty_connection_as_over_a_good_one_and_come_back_without_it() -> None:
    rubric, talks = load_rubric("mentalalign"), [dialogue(number) for number in range(DIALOGUES)]
    judge = Judge(rubric, JudgeRules(seed=4))

    async def judged(url: str) -> list[Judgment]:
        spec = EndpointSpec(base_url=url, model="judge", backoff_seconds=0.02, max_backoff_seconds=0.1)
        endpoint = Endpoint(spec)
        found = await asyncio.gather(*(judge.judge(talk, [endpoint.dialogue(60)], "en") for talk in talks))
        await endpoint.close()
        return list(found)

    with ScriptedServer(script=verdict, faults=Faults(rate_limit=0.1, server_error=0.1)) as server:
        rough = asyncio.run(judged(server.url))
        assert sum(count for outcome, count in server.outcomes.items() if outcome != "ok") > 0
    with ScriptedServer(script=verdict) as server:
        assert asyncio.run(judged(server.url)) == rough
        assert len(server.requests) == DIALOGUES * TURNS
    for number, (talk, judgment) in enumerate(zip(talks, rough, strict=True)):
        score = score_of(judgment, rubric)
        assert score.value == pytest.approx((number % 5) / 4) and len(score.per_turn or ()) == TURNS
        assert asyncio.run(replayed(judgment, talk, rubric)) == judgment
