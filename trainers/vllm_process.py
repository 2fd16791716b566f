"""vLLM servers as processes of their own: how they are started, when they are ready, and how they end.

The run watches each one through ``trainers/supervise.py``, so that none outlives it.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from envs.errors import InputError, RunError
from trainers import supervise

BASE_NAME = "policy"
HOST = "127.0.0.1"
LOG_LINES = 15
PREFILL_TOKENS = 4096
EVERY_INTERFACE = "0.0.0.0"
KEY_VARIABLE = "VLLM_API_KEY"  # so that the key stands on no command line, which every user of a machine may read
# The model in the engine's own process. In one of its own, as vLLM has it on a CPU, the engine asks for its answer in a
# loop that takes a core. By its path, since vLLM turns the short name into the other kind there.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
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
            options["--distributed-executor-backend"] = ONE_PROCESS
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
                "OMP_NUM_THREADS": str(self.threads or usable_cores()),
                "OMP_WAIT_POLICY": "PASSIVE",
            }
        elif self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.gpus))
        return environment


@dataclass(eq=False)
class VllmProcess:
    """One server that this process started, and stops."""

    settings: VllmSettings
    url: str
    process: subprocess.Popen[bytes]

    @classmethod
    def launch(cls, settings: VllmSettings) -> Self:
        """Start the process, without waiting until it answers. Raises InputError when the port is taken."""
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
        own = HOST if settings.host == EVERY_INTERFACE else settings.host
        started = cls(settings, f"http://{own}:{port}", process)
        atexit.register(started.close)
        return started

    @property
    def alive(self) -> bool:
        """Whether it runs, ready or not."""
        return self.process.poll() is None

    def wait_until_ready(self) -> None:
        """Return once it answers and has sampled, which is slow the first time.

        Raises RunError with the log's last lines when it ends meanwhile or takes too long.
        """
        timeout = self.settings.start_timeout
        deadline = time.monotonic() + timeout
        while not self._healthy():
            if not self.alive:
                raise RunError(f"the policy server at {self.url} ended while it started; {self.log_tail()}")
            if time.monotonic() > deadline:
                raise RunError(
                    f"the policy server at {self.url} was not ready after {timeout:g} s; raise engine.start_timeout or "
                    f"look at {self.log_tail()}"
                )
            time.sleep(0.25)
        self._first_request()

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        self.process.terminate()

    def close(self) -> None:
        """Ask it to end, wait, then kill its whole process group. May be called twice."""
        atexit.unregister(self.close)
        self.terminate()
        try:
            self.process.wait(supervise.GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log_tail(self) -> str:
        """The last lines of its log, with the file's name before them."""
        log_file = self.settings.log_file
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return f"the last lines of {log_file}:\n" + "\n".join(lines)

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    def _first_request(self) -> None:
        request = {"model": self.settings.served_name, "prompt": [0, 0], "max_tokens": 2, "temperature": 1.0}
        headers, timeout = headers_of(self.settings.key), self.settings.request_timeout
        try:
            response = httpx.post(f"{self.url}/v1/completions", json=request, headers=headers, timeout=timeout)
        except httpx.TransportError as error:
            raise RunError(f"the policy server at {self.url} can't sample: {error!r}; {self.log_tail()}") from error
        if response.is_error:
            raise RunError(f"the policy server at {self.url} can't sample: {message_of(response)}; {self.log_tail()}")


def start_all(settings: Sequence[VllmSettings]) -> list[VllmProcess]:
    """Start servers side by side and wait until all are ready; where one fails, none is left running.

    Raises InputError when a port is taken, RunError with the log's last lines when one ends or is slow.
    """
    started: list[VllmProcess] = []
    with ThreadPoolExecutor(len(settings)) as pool:
        try:
            for one in settings:
                started.append(VllmProcess.launch(one))
            waiting = [pool.submit(process.wait_until_ready) for process in started]
            for finished in wait(waiting, return_when=FIRST_EXCEPTION).done:
                finished.result()
        except BaseException:
            stop_all(started)  # and the threads that still wait see their server end
            raise
    return started


def stop_all(processes: Sequence[VllmProcess]) -> None:
    """End servers side by side."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.close()


def headers_of(key: str | None) -> dict[str, str]:
    """What a request to a server with this key needs."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def message_of(response: httpx.Response) -> str:
    """What a server says of a request that it refused."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def usable_cores() -> int:
    """How many cores this process may use."""
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
