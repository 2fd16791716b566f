"""vLLM behind the policy server: its own process, started and watched by the run, or servers given as URLs.

Only adapters move: each version is loaded under a new name from a new folder, because vLLM's prefix cache is keyed on
the name. Log-probabilities are the processed ones, so they are those of the distribution that was sampled from.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from envs.errors import InputError, RunError
from trainers import supervise
from trainers.connections import ConnectionStack
from trainers.policy_server import Sampled, adapter_name, checked

BASE_NAME = "policy"
HOST = "127.0.0.1"
LOG_LINES = 15
PREFILL_TOKENS = 4096
PUBLISH_TIMEOUT = 120.0
# vLLM drops idle connections after 5 s; ours must let go first, or a request meets a closing socket.
KEEPALIVE_SECONDS = 2.0
EVERY_INTERFACE = "0.0.0.0"
KEY_VARIABLE = "VLLM_API_KEY"  # so that the key stands on no command line, which every user of a machine may read
# What a launcher of distributed training leaves in the environment and vLLM would take for its own.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class VllmSettings:
    """How to start a server. ``max_loras`` must be at least the adapters in use plus one spare, and one more on CPU;
    0: a server without adapters, such as that of a client's model. ``chat_template``: Jinja, for chat requests.
    """

    model_dir: Path
    log_file: Path
    served_name: str = BASE_NAME
    chat_template: Path | None = None
    host: str = HOST  # the address it listens at
    port: int | None = None  # None: a free one is picked
    key: str | None = field(default=None, repr=False)  # who asks must know it; None: anyone may ask
    device: str = "cpu"
    dtype: str = "float32"
    max_model_len: int = 2048
    max_loras: int = 4
    max_lora_rank: int = 16
    kv_cache_gib: int = 1  # CPU only; on CUDA vLLM takes its share of the device
    threads: int | None = None  # CPU only; None: every core
    gpus: tuple[int, ...] = ()  # CUDA only; empty: all that are visible
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.9  # CUDA only
    enforce_eager: bool = True
    start_timeout: float = 300.0  # seconds
    request_timeout: float = 600.0  # seconds
    extra_args: tuple[str, ...] = ()

    def command(self, port: int) -> list[str]:
        """The command line of the server."""
        options: dict[str, Any] = {
            "--model": self.model_dir,
            "--served-model-name": self.served_name,
            "--host": self.host,
            "--port": port,
            "--dtype": self.dtype,
            "--max-model-len": self.max_model_len,
            "--logprobs-mode": "processed_logprobs",
            "--generation-config": "vllm",
        }
        if self.device == "cuda":
            options["--tensor-parallel-size"] = self.tensor_parallel
            options["--gpu-memory-utilization"] = self.gpu_memory_utilization
        flags = ["--enable-prefix-caching", "--disable-uvicorn-access-log"]
        if self.max_loras:
            flags.append("--enable-lora")
            options |= {"--max-loras": self.max_loras, "--max-lora-rank": self.max_lora_rank}
        if self.chat_template:
            options["--chat-template"] = self.chat_template
        flags += ["--enforce-eager"] if self.enforce_eager else []
        if self.device == "cpu":
            # A seeded request whose prompt is taken in parts kills the engine: a CPU generator can't be wound back.
            options["--max-num-batched-tokens"] = max(self.max_model_len, PREFILL_TOKENS)
            flags.append("--no-enable-chunked-prefill")
        given = [str(part) for pair in options.items() for part in pair]
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *given, *flags, *self.extra_args]

    def environment(self) -> dict[str, str]:
        """The server's environment: this process's, with what vLLM needs and without what a launcher set."""
        left_out = (*LAUNCHER_VARIABLES, KEY_VARIABLE)
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        environment |= {KEY_VARIABLE: self.key} if self.key else {}
        environment |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        # Far above ours: on a busy machine we may read an answer seconds after the server has begun to count.
        environment |= {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60"}
        if self.device == "cpu":
            environment |= {
                "VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gib),
                # Sampling and training take turns on all cores. Bound threads would leave one core out, and threads
                # that spin while they wait would keep the cores from the trainer.
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": str(self.threads or _usable_cores()),
                "OMP_WAIT_POLICY": "PASSIVE",
            }
        elif self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.gpus))
        return environment


@dataclass
class VllmServer:
    """One or more vLLM servers that hold the same base model. ``process`` is None when they aren't ours to stop.

    ``cpu_slots``: how many adapters may be published before base-model requests become unsafe; None: any number.
    """

    urls: tuple[str, ...]
    log_file: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    cpu_slots: int | None = None
    request_timeout: float = 600.0  # seconds
    name: str = BASE_NAME  # of the base model
    key: str | None = field(default=None, repr=False)
    published: list[str] = field(default_factory=list)  # every name so far, retired ones too
    _busy: Counter[str] = field(default_factory=Counter)
    _client: httpx.AsyncClient | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def in_process(self) -> bool:
        """The server is a process of its own, and every training process may ask it."""
        return False

    @classmethod
    def start(cls, settings: VllmSettings) -> Self:
        """Start a server, wait until it answers, and send it a first request, which is slow.

        Raises InputError when the port is taken, RunError with the log's last lines when the server dies or is slow.
        """
        port = settings.port or _free_port()
        _check_port(settings.host, port)
        settings.log_file.parent.mkdir(parents=True, exist_ok=True)
        with settings.log_file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, supervise.__file__, str(os.getpid()), *settings.command(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=settings.environment(),
                start_new_session=True,
            )
        slots = settings.max_loras if settings.device == "cpu" else None
        own = HOST if settings.host == EVERY_INTERFACE else settings.host
        url, wait = f"http://{own}:{port}", settings.request_timeout
        server = cls((url,), settings.log_file, process, slots, wait, settings.served_name, settings.key)
        atexit.register(server.close)
        try:
            server._wait_until_healthy(settings.start_timeout)
            server._first_request()
        except BaseException:
            server.close()
            raise
        return server

    @classmethod
    def connect(cls, urls: Sequence[str], request_timeout: float = 600.0, key: str | None = None) -> Self:
        """Use servers that run already; they share our file system.

        Raises InputError when one doesn't answer, RunError when it refuses the key.
        """
        server = cls(tuple(url.rstrip("/") for url in urls), request_timeout=request_timeout, key=key)
        for url in server.urls:
            try:
                httpx.get(f"{url}/health", timeout=10).raise_for_status()
                asked = httpx.get(f"{url}/v1/models", headers=server._headers, timeout=10)
            except httpx.HTTPError as error:
                raise InputError(
                    f"engine.urls: {url} does not answer ({error}); start the server there, or mend the URL"
                ) from None
            if asked.status_code == httpx.codes.UNAUTHORIZED:
                given = "another key" if key else "none"
                raise RunError(f"engine.key_env: {url} asks for a key and was given {given}; name the variable with it")
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        adapter: str | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        stop_ids: Sequence[int] = (),
    ) -> Sampled:
        """Sample on the least busy server; see PolicyServer. Raises RunError naming the server and its log."""
        if adapter is None and self.cpu_slots is not None and len(self.published) >= self.cpu_slots:
            raise RunError(
                f"all {self.cpu_slots} adapter slots of the policy server are in use, and vLLM on a CPU may then run "
                "the base model with an adapter's weights; raise engine.max_loras, or give the base its own server"
            )
        request = {
            "model": adapter or self.name,
            "prompt": list(prompt_ids),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "seed": seed,
            "logprobs": 0,
            "stop_token_ids": list(stop_ids),
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        url = min(self.urls, key=lambda candidate: self._busy[candidate])
        self._busy[url] += 1
        try:
            answer = await self._post(url, request)
        finally:
            self._busy[url] -= 1
        choice = answer["choices"][0]
        logprobs = [float("nan") if value is None else value for value in choice["logprobs"]["token_logprobs"]]
        sampled = Sampled(
            ids=tuple(choice["token_ids"]),
            logprobs=tuple(logprobs),
            prompt_ids=tuple(choice["prompt_token_ids"] or ()),
            finish_reason="stop" if choice["finish_reason"] == "stop" else "length",
        )
        return checked(prompt_ids, sampled)

    def publish(self, adapter_dir: Path) -> str:
        """Load ``adapter_dir`` on every server; see PolicyServer."""
        name = adapter_name(adapter_dir)
        for url in self.urls:
            self._load(url, "load_lora_adapter", {"lora_name": name, "lora_path": str(adapter_dir.resolve())})
        self.published.append(name)
        return name

    def retire(self, name: str) -> None:
        """Unload an adapter on every server."""
        for url in self.urls:
            self._load(url, "unload_lora_adapter", {"lora_name": name})

    def close(self) -> None:
        """Stop the server if it is ours: ask, wait, then kill its whole process group."""
        atexit.unregister(self.close)
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(supervise.GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    async def _post(self, url: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            response = await self._async_client().post(f"{url}/v1/completions", json=request, headers=self._headers)
        except httpx.TransportError as error:
            raise self._gone(url, error) from error
        if response.is_error:
            raise RunError(f"{url} refused to sample (status {response.status_code}): {_message(response)}")
        return response.json()

    def _load(self, url: str, action: str, request: dict[str, str]) -> None:
        try:
            response = httpx.post(f"{url}/v1/{action}", json=request, headers=self._headers, timeout=PUBLISH_TIMEOUT)
        except httpx.TransportError as error:
            raise self._gone(url, error) from error
        if response.is_error:
            raise RunError(
                f"{url}: {action} of {request['lora_name']} failed ({response.status_code}): {_message(response)}; "
                "the server needs --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and a name it has not seen before"
            )

    def _async_client(self) -> httpx.AsyncClient:
        """A client for the running event loop: its connections can't be used from another one."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            timeout = httpx.Timeout(self.request_timeout, connect=10.0)
            transport = ConnectionStack(retries=1, keepalive_expiry=KEEPALIVE_SECONDS)
            self._client, self._loop = httpx.AsyncClient(timeout=timeout, transport=transport), loop
        return self._client

    def _wait_until_healthy(self, timeout: float) -> None:
        url, deadline = self.urls[0], time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise RunError(f"the policy server at {url} ended while it started; {self._log_tail()}")
            try:
                if httpx.get(f"{url}/health", timeout=5).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise RunError(
            f"the policy server at {url} was not ready after {timeout:g} s; raise engine.start_timeout or look at "
            f"{self._log_tail()}"
        )

    def _first_request(self) -> None:
        request = {"model": self.name, "prompt": [0, 0], "max_tokens": 2, "temperature": 1.0}
        url, wait = f"{self.urls[0]}/v1/completions", self.request_timeout
        response = httpx.post(url, json=request, headers=self._headers, timeout=wait)
        if response.is_error:
            raise RunError(
                f"the policy server at {self.urls[0]} can't sample: {_message(response)}; {self._log_tail()}"
            )

    def _gone(self, url: str, error: httpx.TransportError) -> RunError:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        return RunError(f"the policy server at {url} does not answer any more ({reason}); {self._log_tail()}")

    def _log_tail(self) -> str:
        if self.log_file is None:
            return "look at that server's own log"
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return f"the last lines of {self.log_file}:\n" + "\n".join(lines)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise InputError(
                f"engine.port: {port} on {host} is taken; stop what listens there, name another, or leave it out"
            ) from None
