"""Several policy servers: who is asked, what a failing one costs, and how it comes back, over real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from envs.errors import InputError, RunError
from scripts.commands import serve
from tests.replica_server import ReplicaServer, echo
from trainers import replicas, vllm_process
from trainers.assembly import own_servers
from trainers.config_file import load_config
from trainers.policy_server import EngineReport, Sampled, engine_line
from trainers.replicas import Replica, ReplicaFailed, Replicas
from trainers.vllm_process import VllmProcess
from trainers.vllm_server import VllmServer

TIMEOUT = 30.0  # seconds, in which every server answers


@pytest.fixture
def pair() -> Iterator[tuple[ReplicaServer, ReplicaServer]]:
    with ReplicaServer() as one, ReplicaServer() as other:
        yield one, other


def connected(*servers: ReplicaServer, timeout: float = TIMEOUT) -> VllmServer:
    return VllmServer.connect([server.url for server in servers], timeout)


async def say(server: VllmServer, session: int | None, turn: int = 0, opening: int = 0, name: str | None = None) -> Any:
    """A turn of a dialogue, whose reply must be the one that its seed, prompt and adapter give on any server."""
    request: dict[str, Any] = {"prompt": [opening, *range(turn)], "seed": 1000 * (session or 0) + turn, "max_tokens": 3}
    sampled = await server.generate(
        request["prompt"], adapter=name, seed=request["seed"], max_tokens=3, temperature=1.0, session=session
    )
    assert isinstance(sampled, Sampled) and sampled.ids == tuple(echo(request | {"model": name or "policy"}))
    return sampled


async def all_at_once(server: VllmServer, sessions: range, turn: int = 0, opening: Callable[[int], int] = int) -> None:
    await asyncio.gather(*(say(server, session, turn, opening(session)) for session in sessions))


def sessions_at(server: ReplicaServer, turn: int = 0) -> set[int]:
    return {request["seed"] // 1000 for request in server.answered if request["seed"] % 1000 == turn}


def adapter(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "run" / "adapters" / name
    folder.mkdir(parents=True)
    return folder


def test_a_dialogue_stays_with_its_server(pair: tuple[ReplicaServer, ReplicaServer]) -> None:
    server = connected(*pair)

    async def dialogues() -> None:
        for turn in range(4):
            await all_at_once(server, range(10), turn)

    asyncio.run(dialogues())
    one, other = ([sessions_at(each, turn) for turn in range(4)] for each in pair)
    assert one == [one[0]] * 4 and other == [other[0]] * 4
    assert len(one[0]) == len(other[0]) == 5 and one[0] | other[0] == set(range(10))


def test_dialogues_with_the_same_opening_begin_at_the_same_server(pair: tuple[ReplicaServer, ReplicaServer]) -> None:
    server = connected(*pair)
    # Three groups of four; then one more member of each, which find nothing in flight, and a new opening, which goes
    # where one is in flight and not two.
    asyncio.run(all_at_once(server, range(12), opening=lambda session: session // 4))
    asyncio.run(all_at_once(server, range(12, 16), opening=lambda session: session % 4))
    assert sessions_at(pair[0]) == {0, 1, 2, 3, 8, 9, 10, 11, 12, 14}
    assert sessions_at(pair[1]) == {4, 5, 6, 7, 13, 15}


def test_a_server_that_is_much_busier_leaves_an_opening_to_another(pair: tuple[ReplicaServer, ReplicaServer]) -> None:
    """The first has 8 more in flight when the ninth comes; the second, with the opening from then on, takes the rest
    until it has 16: 8 more than the first."""
    for each in pair:
        each.gate.clear()
    server = connected(*pair)

    async def group() -> None:
        asked = asyncio.ensure_future(all_at_once(server, range(20), opening=lambda session: 7))
        while sum(len(each.asked) for each in pair) < 20:
            await asyncio.sleep(0.01)
        for each in pair:
            each.gate.set()
        await asked

    asyncio.run(group())
    assert [len(each.answered) for each in pair] == [8, 12]


def test_the_first_choice_of_a_run_s_processes_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(rank: str) -> Replica:
        monkeypatch.setenv("RANK", rank)
        chosen = []

        async def ask(replica: Replica) -> None:
            chosen.append(replica)

        asyncio.run(Replicas(members).ask(ask, 1, lambda: 1))
        return chosen[0]

    members = [Replica(f"http://{number}") for number in range(3)]
    assert [first("0"), first("1"), first("2"), first("3")] == [*members, members[0]]


@pytest.mark.parametrize(("mode", "reason"), [("refuse", "Connect"), ("hang", "ReadTimeout"), ("500", "status 500")])
def test_requests_that_fail_are_answered_elsewhere_and_the_server_is_left_out(
    pair: tuple[ReplicaServer, ReplicaServer], mode: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = pair
    server = connected(one, other, timeout=1.0 if mode == "hang" else TIMEOUT)

    async def dialogues() -> None:
        await all_at_once(server, range(5), 0, lambda session: 0)
        one.stop() if mode == "refuse" else setattr(one, "mode", mode)
        with caplog.at_level(logging.WARNING):
            await all_at_once(server, range(5), 1)
        asked = len(one.asked)
        await all_at_once(server, range(6), 2)
        assert len(one.asked) == asked

    asyncio.run(dialogues())
    assert sessions_at(one) == set(range(5)) and sessions_at(other, 1) == set(range(5))
    assert sessions_at(other, 2) == set(range(6))
    report = server.report()
    assert report and report.asked_elsewhere == 5
    assert report.requests == {one.url: 10, other.url: 11}
    assert list(report.left_out) == [one.url] and report.left_out[one.url].startswith(reason)
    [told] = [record.getMessage() for record in caplog.records if record.name == replicas.__name__]
    assert f"{one.url} is left out ({reason}" in told and f"go on at {other.url}" in told


def test_a_single_failure_moves_a_dialogue_and_leaves_nobody_out(pair: tuple[ReplicaServer, ReplicaServer]) -> None:
    one, other = pair
    server = connected(one, other)

    async def dialogue() -> None:
        await say(server, 1)
        for turn in range(1, 7):  # two failures, a success, two failures
            one.mode = None if turn == 3 else "500"
            await say(server, 10 + turn)
        await say(server, 1, 1)

    asyncio.run(dialogue())
    assert server.left_out == {}


def test_a_request_that_is_refused_as_wrong_is_asked_of_nobody_else(pair: tuple[ReplicaServer, ReplicaServer]) -> None:
    one, other = pair
    server = connected(one, other)
    one.mode = "400"
    for session in range(5):
        other.mode = None
        with pytest.raises(RunError, match=rf"{one.url} refused to sample \(status 400\): no"):
            asyncio.run(say(server, session))
    assert other.asked == [] and server.left_out == {}


def test_the_last_server_is_never_left_out_and_its_error_is_told(pair: tuple[ReplicaServer, ReplicaServer]) -> None:
    one, other = pair
    server = connected(one, other)
    for each in pair:
        each.stop()
    for session in range(8):
        with pytest.raises(RunError, match=r"does not answer any more"):
            asyncio.run(say(server, session))
    assert len(server.left_out) == 1
    last = next(each for each in pair if each.url not in server.left_out)
    with pytest.raises(RunError, match=f"server at {last.url} does not answer"):
        asyncio.run(say(server, 0))
    last.start()
    asyncio.run(say(server, 0))


def test_a_request_is_asked_of_three_servers_at_most() -> None:
    asked: list[Replica] = []

    async def ask(replica: Replica) -> None:
        asked.append(replica)
        raise ReplicaFailed("no", "no")

    members = [Replica(f"http://{number}") for number in range(5)]
    with pytest.raises(ReplicaFailed):
        asyncio.run(Replicas(members).ask(ask, 1, lambda: 1))
    assert asked == members[:3] and [member.in_flight for member in members] == [0] * 5


def test_a_server_whose_process_has_ended_is_left_out_at_its_first_failure() -> None:
    class Ended:
        alive = False

    async def ask(replica: Replica) -> str:
        if replica.process:
            raise ReplicaFailed("no", "gone")
        return replica.url

    members = [Replica("http://0", cast(VllmProcess, Ended())), Replica("http://1")]
    chosen = Replicas(members)
    assert asyncio.run(chosen.ask(ask, 1, lambda: 1)) == "http://1"
    assert chosen.left_out == {"http://0": "gone"}


def test_a_server_that_started_again_joins_at_the_next_publish_with_every_live_adapter(
    pair: tuple[ReplicaServer, ReplicaServer], tmp_path: Path
) -> None:
    one, other = pair
    server = connected(one, other)
    names = [server.publish(adapter(tmp_path, name)) for name in ("v0", "v1", "v2")]
    server.retire(names[0])
    one.stop()
    asyncio.run(all_at_once(server, range(8), opening=lambda session: 0))
    assert list(server.left_out) == [one.url]
    names.append(server.publish(adapter(tmp_path, "v3")))  # it is still away
    assert list(server.left_out) == [one.url]
    one.start()
    one.loads.clear()
    names.append(server.publish(adapter(tmp_path, "v4")))
    assert server.left_out == {} and one.loads == names[1:]
    assert one.adapters == other.adapters == set(names[1:])
    before = len(one.answered)
    asyncio.run(say(server, 99, name=names[2]))
    asyncio.run(say(server, 98, 1, 1, name=names[4]))
    assert len(one.answered) > before


def test_a_server_that_lost_its_adapters_is_found_out_by_a_request_or_by_a_publish(
    pair: tuple[ReplicaServer, ReplicaServer], tmp_path: Path
) -> None:
    one, other = pair
    server = connected(one, other)
    first = server.publish(adapter(tmp_path, "v0"))
    one.adapters.clear()
    second = server.publish(adapter(tmp_path, "v1"))
    assert one.adapters == {first, second}
    one.adapters.clear()
    asyncio.run(say(server, 1, name=second))
    assert server.left_out == {one.url: f"it started again and has lost {second}"} and len(other.answered) == 1
    third = server.publish(adapter(tmp_path, "v2"))
    assert server.left_out == {} and one.adapters == {first, second, third}


def test_an_adapter_that_nobody_published_is_our_own_error(pair: tuple[ReplicaServer, ReplicaServer]) -> None:
    server = connected(*pair)
    with pytest.raises(RunError, match=r"status 404.*`never` does not exist"):
        asyncio.run(say(server, 1, name="never"))
    assert server.left_out == {} and sum(len(each.asked) for each in pair) == 1


@pytest.mark.parametrize("mode", ["refuse", "500", "400"])
def test_publishing_goes_on_without_a_server_that_can_t(
    pair: tuple[ReplicaServer, ReplicaServer], tmp_path: Path, mode: str
) -> None:
    one, other = pair
    server = connected(one, other)
    other.stop() if mode == "refuse" else setattr(other, "mode", mode)
    name = server.publish(adapter(tmp_path, "v0"))
    assert list(server.left_out) == [other.url]
    asyncio.run(say(server, 1, name=name))
    server.retire(name)
    assert one.adapters == set() and server.published == [name]


def test_retiring_goes_on_without_a_dead_server(pair: tuple[ReplicaServer, ReplicaServer], tmp_path: Path) -> None:
    one, other = pair
    server = connected(one, other)
    name = server.publish(adapter(tmp_path, "v0"))
    one.stop()
    server.retire(name)
    assert other.adapters == set() and list(server.left_out) == [one.url]


def test_publishing_fails_when_no_server_takes_the_adapter(
    pair: tuple[ReplicaServer, ReplicaServer], tmp_path: Path
) -> None:
    server, folder = connected(*pair), adapter(tmp_path, "v0")
    server.publish(folder)
    with pytest.raises(RunError, match=r"has already been loaded"):
        server.publish(folder)
    assert server.left_out == {}
    for each in pair:
        each.stop()
    with pytest.raises(RunError, match=r"does not answer any more"):
        server.publish(adapter(tmp_path, "v1"))
    assert server.left_out == {} and len(server.published) == 1


def test_no_reply_is_lost_and_none_is_sampled_twice_when_a_server_dies(
    pair: tuple[ReplicaServer, ReplicaServer], tmp_path: Path
) -> None:
    one, other = pair
    server = connected(one, other)
    name = server.publish(adapter(tmp_path, "v0"))

    async def dialogue(session: int) -> None:
        for turn in range(5):
            await say(server, session, turn, session // 4, name)
            await asyncio.sleep(0.001 * (session % 7))

    async def dialogues() -> None:
        running = asyncio.gather(*(dialogue(session) for session in range(48)))
        while len(one.answered) < 40:
            await asyncio.sleep(0.001)
        one.gate.clear()
        while len(one.asked) - len(one.answered) < 10:  # in flight there
            await asyncio.sleep(0.001)
        one.stop()
        one.gate.set()
        await running

    asyncio.run(dialogues())
    seeds = [request["seed"] for each in pair for request in each.answered]
    assert sorted(seeds) == [1000 * session + turn for session in range(48) for turn in range(5)]
    report = server.report()
    assert report and report.asked_elsewhere >= 10 and list(report.left_out) == [one.url]


def test_another_process_s_publish_says_who_is_left_out(
    pair: tuple[ReplicaServer, ReplicaServer], tmp_path: Path
) -> None:
    one, other = pair
    first, second = connected(one, other), connected(one, other)
    one.mode = "500"
    name = first.publish(adapter(tmp_path, "v0"))
    second.follow(name, first.left_out)
    one.mode = None
    asyncio.run(say(second, 1, name=name))
    assert one.asked == [] and list(second.left_out) == [one.url]
    name = first.publish(adapter(tmp_path, "v1"))
    second.follow(name, first.left_out)
    assert first.left_out == second.left_out == {}
    asyncio.run(say(second, 2, name=name))
    assert len(one.answered) == 1


def test_a_run_starts_without_a_server_that_is_away_only_where_another_one_is_there(
    pair: tuple[ReplicaServer, ReplicaServer], tmp_path: Path
) -> None:
    one, other = pair
    one.stop()
    with pytest.raises(InputError, match=rf"engine\.urls: {one.url} does not answer"):
        connected(one, other)
    server = VllmServer.connect([one.url, other.url], TIMEOUT, every=False)
    assert list(server.left_out) == [one.url]
    asyncio.run(say(server, 1))
    one.start()
    server.publish(adapter(tmp_path, "v0"))
    assert server.left_out == {}
    for each in pair:
        each.stop()
    with pytest.raises(InputError, match=r"engine\.urls"):
        VllmServer.connect([one.url, other.url], TIMEOUT, every=False)


def test_only_so_many_dialogues_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "REMEMBERED", 5)
    chosen = Replicas([Replica("http://0"), Replica("http://1")])

    async def ask(replica: Replica) -> None: ...

    async def many() -> None:
        for session in range(20):
            await chosen.ask(ask, session, lambda: session)  # noqa: B023

    asyncio.run(many())
    assert list(chosen._homes) == list(chosen._openings) == [15, 16, 17, 18, 19]


def test_the_metrics_line_adds_up_what_all_processes_asked() -> None:
    reports = [EngineReport({"a": 3, "b": 4}, 1, {"b": "gone"}), EngineReport({"a": 5, "b": 0}, 2, {})]
    assert engine_line(reports) == {
        "engine": {"requests": {"a": 8, "b": 4}, "asked_elsewhere": 3, "left_out": {"b": "gone"}}
    }
    assert engine_line([None, None]) == {}


def test_a_single_server_is_not_reported(pair: tuple[ReplicaServer, ReplicaServer]) -> None:
    server = connected(pair[0])
    asyncio.run(say(server, 1))
    assert server.report() is None


def test_a_run_s_own_servers_share_its_gpus_and_have_ports_and_logs_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = ["devices.training=[0]", "devices.engine=[2,3,4,5]", "engine.tensor_parallel=2", "engine.port=8100"]
    settings = own_servers(load_config(None, [*changes, "engine.replicas=2"]), tmp_path, tmp_path / "server.log")
    assert [(one.gpus, one.port, one.log_file.name, one.tensor_parallel) for one in settings] == [
        ((2, 3), 8100, "server.log", 2),
        ((4, 5), 8101, "server_1.log", 2),
    ]
    monkeypatch.setattr(vllm_process, "usable_cores", lambda: 8)
    for changes, threads in (([], 8), (["engine.replicas=3"], 2), (["engine.replicas=3", "engine.threads=4"], 4)):
        settings = own_servers(load_config(None, changes), tmp_path, tmp_path / "server.log")
        assert [(one.threads, one.port, one.gpus) for one in settings] == [(threads, None, ())] * len(settings)


def test_attune_serve_goes_on_until_its_last_server_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (SimpleNamespace(url=url, alive=True, settings=SimpleNamespace(log_file=f"{url}.log")) for url in "ab")
    dying = iter([one, other])

    def sleep(seconds: float) -> None:
        next(dying).alive = False

    monkeypatch.setattr(serve.time, "sleep", sleep)
    with pytest.raises(RunError, match=r"server at b ended by itself; look at b\.log; none is left"):
        serve.watch(cast(list[VllmProcess], [one, other]))
    assert "server at a ended by itself; look at a.log; 1 of 2 are left" in capsys.readouterr().err
