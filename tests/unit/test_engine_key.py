"""Servers that are given to a run: where they are and their key come from the environment, and the key guards them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from envs.errors import InputError, RunError
from scripts.attune import main
from scripts.commands.serve import check_open
from trainers.assembly import engine_key, engine_urls
from trainers.config import Engine, RunConfig
from trainers.config_file import load_config
from trainers.vllm_process import VllmSettings
from trainers.vllm_server import VllmServer

KEY = "a-key-that-nobody-else-has"
ANSWER = b'{"choices": [{"token_ids": [5], "logprobs": {"token_logprobs": [-0.5]}, "prompt_token_ids": [1, 2], "finish_reason": "stop"}]}'  # fmt: skip  # noqa: E501


class Guarded(BaseHTTPRequestHandler):
    """Answers below /v1 only those who know the key, as vLLM does."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        allowed = not self.path.startswith("/v1") or self.headers.get("Authorization") == f"Bearer {KEY}"
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_with_a_key_is_used_by_who_knows_it(url: str, tmp_path: Path) -> None:
    server = VllmServer.connect([url], 5, KEY)
    sampled = asyncio.run(server.generate([1, 2], adapter=None, seed=0, max_tokens=1, temperature=1.0))
    assert sampled.ids == (5,)
    name = server.publish(tmp_path)
    server.retire(name)


@pytest.mark.parametrize(("key", "given"), [(None, "none"), ("another", "another key")])
def test_a_server_that_refuses_the_key_is_told_at_once(url: str, key: str | None, given: str) -> None:
    with pytest.raises(RunError, match=rf"engine\.key_env: .*was given {given}"):
        VllmServer.connect([url], 5, key)


def test_the_key_reaches_the_server_in_its_environment_and_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "one of another server")
    settings = VllmSettings(Path("model"), Path("log"), key=KEY)
    assert settings.environment()["VLLM_API_KEY"] == KEY
    assert KEY not in " ".join([*settings.command(8000), repr(settings), repr(VllmServer((), key=KEY))])
    assert "VLLM_API_KEY" not in VllmSettings(Path("model"), Path("log")).environment()


def test_addresses_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(engine=Engine(urls_env="WHERE", key_env="SECRET"))
    for read, key in ((engine_urls, "urls_env: the environment variable WHERE"), (engine_key, "key_env: the environ")):
        with pytest.raises(InputError, match=rf"engine\.{key}.*is not set; set it"):
            read(config)
    monkeypatch.setenv("WHERE", "http://10.0.0.1:1, http://10.0.0.2:1")
    monkeypatch.setenv("SECRET", KEY)
    assert engine_urls(config) == ["http://10.0.0.1:1", "http://10.0.0.2:1"]
    assert engine_key(config) == KEY
    monkeypatch.setenv("WHERE", "10.0.0.1:1")
    with pytest.raises(InputError, match=r"WHERE holds '10\.0\.0\.1:1'"):
        engine_urls(config)


def test_servers_named_twice_are_refused() -> None:
    with pytest.raises(InputError, match=r"engine\.urls_env: names the servers a second time"):
        load_config(None, ["engine.urls=[http://127.0.0.1:1]", "engine.urls_env=WHERE"])


def test_a_server_without_a_key_stays_on_loopback(capsys: pytest.CaptureFixture[str]) -> None:
    check_open(RunConfig(engine=Engine(port=8000)), "127.0.0.1")
    assert main(["serve", "engine.port=8000", "--host", "0.0.0.0"]) == 2
    assert "engine.key_env: is needed with --host 0.0.0.0" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(InputError, match=r"engine\.port: is needed"):
        check_open(RunConfig(), "127.0.0.1")
