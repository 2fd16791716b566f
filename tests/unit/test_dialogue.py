"""Dialogues: a failure stays within its own, results keep their order, and each reply reaches its own client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from envs.client_spec import load_spec
from envs.clients import make_client
from envs.dialogue import DialoguePlan, Supporter, run_dialogue, run_dialogues
from envs.receipts import check_emotions
from envs.supporters import MixingSupporter
from envs.trajectory import ClientTurn, Generation, Message, Stop, Trajectory
from tests.unit.dialogues import card

SPEC = load_spec("appraisal-v1")
WHO = card("en-who")


class Counting:
    """A client that goes up one point a turn, answers with its name, and stops after ``turns``."""

    def __init__(self, name: str, turns: int = 99, breaks_at: int | None = None) -> None:
        self.name, self.turns, self.breaks_at = name, turns, breaks_at
        self.heard: list[str] = []

    async def open(self) -> ClientTurn:
        if self.breaks_at == 0:
            raise ValueError("no opening")
        return ClientTurn(text=f"{self.name} 0", emotion=40, written_change=0, change=0)

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        self.heard.append(history[-1].text)
        count = len(self.heard)
        if self.breaks_at == count:
            raise KeyError("lost the thread")
        stop = Stop.GOODBYE if count >= self.turns else None
        return ClientTurn(text=f"{self.name} {count}", emotion=40 + count, written_change=1, change=1, stop=stop)


class Answering:
    """A supporter that repeats whom it heard, after ``waits`` runs of the loop, and fails at turn ``breaks_at``."""

    def __init__(self, waits: int = 0, breaks_at: int | None = None, error: BaseException | None = None) -> None:
        self.waits, self.breaks_at, self.error = waits, breaks_at, error or ConnectionError("the server is gone")
        self.turn = 0

    async def reply(self, messages: Sequence[Message]) -> Generation:
        self.turn += 1
        for _ in range(self.waits):
            await asyncio.sleep(0)
        if self.turn == self.breaks_at:
            raise self.error
        return Generation(text=f"to {messages[-1].text}")


class Hanging:
    """A supporter that never answers."""

    async def reply(self, messages: Sequence[Message]) -> Generation:
        await asyncio.Event().wait()
        raise AssertionError


def plan(name: str, client: Counting | None = None, supporter: Supporter | None = None) -> DialoguePlan:
    return DialoguePlan(name, WHO, SPEC, 7, client or Counting(name, 2), supporter or Answering())


def run(*plans: DialoguePlan, concurrency: int = 8, deadline: float | None = None) -> list[Trajectory]:
    return asyncio.run(run_dialogues(plans, concurrency, deadline))


def test_a_dialogue_goes_from_the_opening_to_the_clients_stop():
    client = Counting("a", 2)
    (trajectory,) = run(plan("a", client))
    assert [message.text for message in trajectory.messages] == ["a 0", "to a 0", "a 1", "to a 1", "a 2"]
    assert [message.speaker for message in trajectory.messages] == ["client", "supporter"] * 2 + ["client"]
    assert (trajectory.stop, trajectory.error, trajectory.emotions) == (Stop.GOODBYE, None, [40, 41, 42])


def test_a_trajectory_names_card_spec_and_seed():
    (one,) = run(plan("a"))
    assert (one.dialogue_id, one.card_id, one.card_hash) == ("a", WHO.id, WHO.hash)
    assert (one.spec, one.spec_hash, one.seed) == (SPEC.name, SPEC.hash, 7)


def test_a_dialogue_that_nobody_ends_stops_at_the_specs_turn_limit():
    (trajectory,) = run(plan("a", Counting("a")))
    assert (trajectory.stop, len(trajectory.turns)) == (Stop.TURN_LIMIT, SPEC.max_turns)


@pytest.mark.parametrize(
    ("client", "supporter", "reason", "turns"),
    [
        (Counting("bad", breaks_at=0), Answering(), "ValueError: no opening", 0),
        (Counting("bad", breaks_at=1), Answering(), "KeyError: 'lost the thread'", 0),
        (Counting("bad", breaks_at=3), Answering(), "KeyError: 'lost the thread'", 2),
        (Counting("bad"), Answering(breaks_at=1), "ConnectionError: the server is gone", 0),
        (Counting("bad"), Answering(breaks_at=2), "ConnectionError: the server is gone", 1),
        (Counting("bad"), Answering(breaks_at=2, error=TimeoutError()), "TimeoutError: ", 1),
    ],
)
def test_who_fails_ends_that_dialogue_with_a_reason_and_no_other(client, supporter, reason, turns):
    failed = DialoguePlan("bad", WHO, SPEC, 7, client, supporter)
    before, bad, after = run(plan("a"), failed, plan("c"))
    assert (bad.stop, bad.error, len(bad.turns)) == (Stop.ERROR, reason, turns)
    assert bad.final_emotion is None
    assert [one.stop for one in (before, after)] == [Stop.GOODBYE] * 2
    assert (before, after) == tuple(run(plan("a"), plan("c")))


def test_what_was_said_before_a_failure_is_kept():
    (bad,) = run(plan("bad", Counting("bad"), Answering(breaks_at=2)))
    assert [message.text for message in bad.messages] == ["bad 0", "to bad 0", "bad 1"]


def test_a_dialogue_past_its_deadline_fails_and_says_so_while_others_go_on():
    late, fine = run(plan("late", supporter=Hanging()), plan("fine"), deadline=0.05)
    assert (late.stop, late.error) == (Stop.ERROR, "not finished within 0.05 s")
    assert late.opening is not None and late.turns == ()
    assert fine.stop is Stop.GOODBYE


def test_a_supporters_own_timeout_is_not_taken_for_the_deadline():
    own = Answering(breaks_at=1, error=TimeoutError("no answer within 3 s"))
    (bad,) = run(plan("bad", supporter=own), deadline=60)
    assert bad.error == "TimeoutError: no answer within 3 s"


def test_being_cancelled_is_not_taken_for_a_failure():
    async def cancelled() -> None:
        task = asyncio.create_task(run_dialogue(plan("a", supporter=Hanging())))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_results_come_in_the_order_of_the_plans_whoever_ends_first():
    ended: list[str] = []
    plans = [plan(str(number), supporter=Answering(waits=40 - 10 * number)) for number in range(4)]
    results = asyncio.run(run_dialogues(plans, 4, on_done=lambda one: ended.append(one.dialogue_id)))
    assert [one.dialogue_id for one in results] == ["0", "1", "2", "3"]
    assert ended == ["3", "2", "1", "0"]


@pytest.mark.parametrize("bound", [1, 3, 20])
def test_no_more_dialogues_than_the_bound_are_in_flight(bound):
    inside, most = 0, 0

    class Watched(Answering):
        async def reply(self, messages: Sequence[Message]) -> Generation:
            nonlocal inside, most
            inside, most = inside + 1, max(most, inside + 1)
            answer = await super().reply(messages)
            inside -= 1
            return answer

    results = run(*(plan(str(number), supporter=Watched(waits=3)) for number in range(9)), concurrency=bound)
    assert len(results) == 9 and most == min(bound, 9)


def test_every_reply_is_heard_and_scored_the_last_one_too():
    clients = [Counting("a"), Counting("b", 3)]
    for client, trajectory in zip(clients, run(*(plan(c.name, c) for c in clients)), strict=True):
        assert client.heard == [turn.supporter.text for turn in trajectory.turns]
        assert [turn.client.change for turn in trajectory.turns] == [1] * len(client.heard)
        assert trajectory.final_emotion == 40 + len(client.heard)


def test_each_reply_reaches_its_own_client_whichever_dialogue_ended_before():
    clients = [Counting(f"client {number}", turns=1 + number % 5) for number in range(20)]
    plans = [plan(c.name, c, Answering(waits=(7 * number) % 11)) for number, c in enumerate(clients)]
    for client, trajectory in zip(clients, run(*plans, concurrency=6), strict=True):
        assert client.heard == [f"to {client.name} {turn}" for turn in range(client.turns)]
        assert trajectory.dialogue_id == client.name and len(trajectory.turns) == client.turns


def test_the_same_dialogues_come_out_alone_and_side_by_side():
    def plans() -> list[DialoguePlan]:
        who = [card(f"en-{name}", temperament=name) for name in ("negative", "passive", "avoidant")]
        return [DialoguePlan(c.id, c, SPEC, 3, make_client(c, SPEC, 3), MixingSupporter("en", 3)) for c in who]

    together = run(*plans())
    assert together == run(*plans(), concurrency=1)
    for trajectory in together:
        check_emotions(trajectory, SPEC, trajectory.dialogue_id)


def test_no_plans_give_no_results():
    assert run() == []
