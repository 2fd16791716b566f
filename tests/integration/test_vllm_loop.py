"""GRPO against a real vLLM server on the CPU: two steps on a tiny random policy, then the server is gone."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from envs.errors import InputError, RunError
from tests.tiny_policy import ByteClient, a_card, a_spec, emotion_reward, kind_templates
from trainers.policy import Sampling
from trainers.policy_server import Sampled
from trainers.train import TrainSettings, train
from trainers.vllm_process import PREFILL_TOKENS, VllmSettings
from trainers.vllm_server import VllmServer

pytest.importorskip("vllm")

PROMPT = [258, 104, 101, 108, 108, 111]
SETTINGS = TrainSettings(
    steps=2,
    cards_per_step=2,
    group_size=4,
    micro_batch=4,
    checkpoint_every=5,
    sampling=Sampling(max_tokens=16, max_context=256),
)


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    log_file = tmp_path_factory.mktemp("logs") / "vllm.log"
    with VllmServer.start(VllmSettings(model_dir, log_file, max_model_len=256, max_loras=4)) as started:
        yield started


def logprobs(server: VllmServer, adapter: str | None) -> tuple[float, ...]:
    request = server.generate(PROMPT, adapter=adapter, seed=3, max_tokens=1, temperature=1.0)
    return asyncio.run(request).logprobs


def test_two_steps_train_and_every_version_is_sampled_from(server, model_dir, tmp_path):
    base = logprobs(server, None)
    run_dir = tmp_path / "run"
    final = train(
        SETTINGS,
        model_dir=model_dir,
        run_dir=run_dir,
        server=server,
        templates=kind_templates(model_dir),
        cards=[a_card()],
        spec=a_spec(3),
        make_client=ByteClient,
        reward=emotion_reward,
    )
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["policy_version"] for line in metrics] == ["run-v000000", "run-v000002"]
    assert all(0 < line["max_logprob_difference"] < 1e-4 for line in metrics)
    assert metrics[1]["kl"] > metrics[0]["kl"]

    kept = run_dir / "adapters" / "kept"
    shutil.copytree(final, kept)
    trained = server.publish(kept)
    assert logprobs(server, trained) != pytest.approx(base, abs=1e-3)
    assert logprobs(server, None) == pytest.approx(base, abs=1e-5)
    server.retire(trained)
    with pytest.raises(RunError, match="does not exist"):
        logprobs(server, trained)

    another = run_dir / "adapters" / "another"
    shutil.copytree(final, another)
    server.publish(another)
    with pytest.raises(RunError, match="adapter slots"):
        logprobs(server, None)
    with pytest.raises(RunError, match="has already been loaded"):
        server.publish(another)


def test_the_same_seed_gives_the_same_reply_and_another_seed_another(server):
    def reply(seed: int) -> tuple[int, ...]:
        name = server.published[-1]
        request = server.generate(PROMPT, adapter=name, seed=seed, max_tokens=12, temperature=1.0)
        return asyncio.run(request).ids

    assert reply(1) == reply(1) != reply(2)


def test_more_prompt_tokens_at_once_than_fit_into_one_forward_pass_do_not_kill_the_engine(server):
    async def many() -> list[Sampled]:
        prompts = [[258, *[97 + row % 26] * 200, row] for row in range(32)]
        return await asyncio.gather(
            *(
                server.generate(prompt, adapter=server.published[-1], seed=row, max_tokens=2, temperature=1.0)
                for row, prompt in enumerate(prompts)
            )
        )

    assert PREFILL_TOKENS < 32 * 202
    assert all(sampled.ids for sampled in asyncio.run(many()))


def group_members(group: int) -> list[int]:
    """Ids of the living processes in a process group."""
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group = entry.read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
            if int(process_group) == group and state not in "ZX":
                members.append(int(entry.parent.name))
    return members


def test_after_closing_no_process_of_the_server_is_left_and_a_request_names_its_log(server):
    [process] = server.processes
    url, log_file, group = process.url, process.settings.log_file, process.process.pid
    assert len(group_members(group)) >= 3  # supervisor, API server, engine
    server.close()
    assert group_members(group) == []
    with pytest.raises(RunError) as caught:
        logprobs(server, server.published[-1])
    assert url in str(caught.value) and str(log_file) in str(caught.value)


def test_a_server_that_cannot_start_says_why(model_dir, tmp_path):
    settings = VllmSettings(model_dir, tmp_path / "vllm.log", extra_args=("--no-such-flag",))
    with pytest.raises(RunError, match=r"ended while it started(.|\n)*no-such-flag"):
        VllmServer.start(settings)


def test_a_port_that_is_taken_is_refused_before_anything_starts(model_dir, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(InputError, match=rf"engine\.port: {port}"):
            VllmServer.start(VllmSettings(model_dir, tmp_path / "vllm.log", port=port))
    assert time.monotonic() - started < 2


def test_a_url_where_nothing_answers_is_refused():
    with pytest.raises(InputError, match=r"engine\.urls"):
        VllmServer.connect(["http://127.0.0.1:9"])
