"""Each variant of the benchmark plays the same talks against a scripted server: as many turns, tokens and waits."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from envs.errors import RunError
from scripts.benchmark_parts.engine import BenchmarkServer
from scripts.benchmark_parts.prefix import IdealPrefixes
from scripts.benchmark_parts.trl_path import play_trl
from scripts.benchmark_parts.variants import Bench, play_lock_step, play_ours
from scripts.benchmark_parts.verifiers_path import Verifiers
from scripts.benchmark_parts.work import LogNormal, talks
from tests.tiny_policy import a_card, kind_templates, tiny_model

pytestmark = pytest.mark.integration

DIALOGUES, TURNS, TOKENS = 4, 2, 5
WAIT = LogNormal(mu=-4.0, sigma=0.01)  # 18 ms


class Scripted(ThreadingHTTPServer):
    """Answers as vLLM's completion endpoint does, always with the letter a; counts batches and their prompts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.batches: list[int] = []
        self.asked: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_GET(self) -> None:
        self._send(b'vllm:prefix_cache_hits_total{engine="0"} 3.0\nvllm:prefix_cache_queries_total{engine="0"} 9.0\n')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path != "/v1/completions":
            return self._send(b"")
        request = json.loads(body)
        prompts = request["prompt"] if isinstance(request["prompt"][0], list) else [request["prompt"]]
        self.server.batches.append(len(prompts))
        self.server.asked.append(request)
        said = {"token_ids": [97] * request["max_tokens"], "finish_reason": "length"}
        said["logprobs"] = {"token_logprobs": [-0.5] * request["max_tokens"]}
        choices = [{"index": row, "prompt_token_ids": prompt, **said} for row, prompt in enumerate(prompts)]
        self._send(json.dumps({"choices": choices}).encode())

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    longer = config | {"max_position_embeddings": 4096}  # TRL's tool schema is long in single bytes
    (folder / "config.json").write_text(json.dumps(longer), encoding="utf-8")
    return folder


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def bench(scripted: Scripted, model_dir: Path) -> Iterator[Bench]:
    server = BenchmarkServer((f"http://127.0.0.1:{scripted.server_port}",))
    server.ideal = IdealPrefixes(16)
    with asyncio.Runner() as runner:
        yield Bench(server, kind_templates(model_dir)["en"], "Be kind.", TOKENS, runner)


def test_ours_asks_for_one_reply_at_a_time_and_lock_step_for_all_of_a_turn(scripted: Scripted, bench: Bench) -> None:
    work = talks([a_card()], DIALOGUES, TURNS, WAIT, seed=0)
    ours = play_ours(bench, work)
    assert scripted.batches == [1] * DIALOGUES * TURNS
    scripted.batches.clear()
    in_turn, together = play_lock_step(bench, work), play_lock_step(bench, work, together=True)
    assert scripted.batches == [DIALOGUES] * TURNS * 2
    assert {played.turns for played in (ours, in_turn, together)} == {DIALOGUES * TURNS}
    assert {request["max_tokens"] for request in scripted.asked} == {TOKENS}
    assert {request["ignore_eos"] for request in scripted.asked} == {True}
    assert in_turn.seconds > in_turn.waited == ours.waited == pytest.approx(DIALOGUES * TURNS * 0.0183, rel=0.05)
    assert ours.prefix_ideal == in_turn.prefix_ideal
    assert ours.prefix_ideal and ours.prefix_ideal > 0


def test_trl_s_own_loop_asks_all_clients_in_turn_and_samples_as_many_replies(
    scripted: Scripted, bench: Bench, model_dir: Path
) -> None:
    work = talks([a_card()], DIALOGUES, TURNS, WAIT, seed=0, group=DIALOGUES)
    played = play_trl(bench, work, str(model_dir))
    assert scripted.batches == [DIALOGUES] * TURNS
    assert played.turns == DIALOGUES * TURNS and played.seconds > played.waited
    first, second = (bench.template.tokenizer.decode(request["prompt"][0]) for request in scripted.asked)
    assert work[0].opening in first and work[0].answers[0] not in first
    assert f"<tool_response>\n{work[0].answers[0]}\n</tool_response>" in second


PLAYS = """
import json, pathlib, sys
for line in sys.stdin:
    job = json.loads(line)
    if hung.exists() and job["talks"][2:]:
        hung.unlink()
        continue
    print(json.dumps({"seconds": 0.5, "turns": sum(len(talk["waits"]) for talk in job["talks"])}), flush=True)
"""


def test_a_program_that_hangs_is_told_started_again_and_measured_again(tmp_path: Path, bench: Bench) -> None:
    hung, told = tmp_path / "hung", list[str]()
    hung.touch()
    program = PLAYS.replace("for line", f"hung = pathlib.Path({str(hung)!r})\nfor line")
    with Verifiers([sys.executable, "-c", program], tmp_path / "log", told.append, limit=5.0) as verifiers:
        played = verifiers.play(bench, talks([a_card()], DIALOGUES, TURNS, WAIT, seed=0))
    assert (played.turns, played.seconds) == (DIALOGUES * TURNS, 0.5)
    assert len(told) == 1 and "gave no answer in 5 s, 1 of 3 times" in told[0]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("", "the process"),
        ("import time; time.sleep(60)", "hung 3 times"),
        ("input(); print('torn {')", "no answer"),
    ],
    ids=["ends at once", "never answers", "a torn line"],
)
def test_a_program_that_breaks_is_an_error_with_its_log(tmp_path: Path, bench: Bench, program: str, said: str) -> None:
    work = talks([a_card()], DIALOGUES, TURNS, WAIT, seed=0)
    with (
        Verifiers([sys.executable, "-c", program], tmp_path / "log", lambda line: None, limit=1.0) as verifiers,
        pytest.raises(RunError, match=said),
    ):
        verifiers.play(bench, work)
    assert verifiers._process.poll() is not None
