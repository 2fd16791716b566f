"""vLLM behind the policy server: one or several servers, started by the run or given as URLs, asked over HTTP.

Only adapters move: each version is loaded under a new name from a new folder, because vLLM's prefix cache is keyed on
the name. Log-probabilities are the processed ones, so they are those of the distribution that was sampled from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx

from envs.errors import InputError, RunError
from trainers.connections import ConnectionStack
from trainers.policy_server import EngineReport, Sampled, adapter_name, checked
from trainers.replicas import Replica, ReplicaFailed, Replicas
from trainers.vllm_process import BASE_NAME, VllmProcess, VllmSettings, headers_of, message_of, start_all, stop_all

CONNECT_TIMEOUT = 10.0  # seconds, as the two below
PUBLISH_TIMEOUT = 120.0
JOIN_TIMEOUT = 2.0  # until a server that is left out has not answered; each publish waits so long
# vLLM drops idle connections after 5 s; ours must let go first, or a request meets a closing socket.
KEEPALIVE_SECONDS = 2.0


class VllmServer:
    """One or more vLLM servers that hold the same base model. ``processes``: those that are ours to stop.

    ``cpu_slots``: how many adapters may be published before base-model requests become unsafe; None: any number.
    ``request_timeout`` in seconds.
    """

    in_process = False  # every training process may ask it

    def __init__(
        self,
        urls: Sequence[str],
        processes: Sequence[VllmProcess] = (),
        cpu_slots: int | None = None,
        request_timeout: float = 600.0,
        key: str | None = None,
    ) -> None:
        own = {process.url: process for process in processes}
        self.urls, self.processes = tuple(urls), tuple(processes)
        self.published: list[str] = []  # every name so far, retired ones too
        self._replicas = Replicas([Replica(url, own.get(url)) for url in self.urls])
        self._live: dict[str, Path | None] = {}  # the names in use; where each lies, if this process published it
        self._cpu_slots, self._request_timeout = cpu_slots, request_timeout
        headers = self._headers = headers_of(key)
        timeout = httpx.Timeout(PUBLISH_TIMEOUT, connect=CONNECT_TIMEOUT)
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_SECONDS)
        self._http = httpx.Client(timeout=timeout, limits=limits, headers=headers)
        # Connections belong to the event loop in which they were made.
        self._clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    @classmethod
    def start(cls, *settings: VllmSettings) -> Self:
        """Start servers side by side, wait until they answer, and send each a first request, which is slow.

        Raises InputError when a port is taken, RunError with the log's last lines when one dies or is slow.
        """
        processes, one = start_all(settings), settings[0]
        slots = one.max_loras if one.device == "cpu" else None
        return cls([process.url for process in processes], processes, slots, one.request_timeout, one.key)

    @classmethod
    def connect(
        cls, urls: Sequence[str], request_timeout: float = 600.0, key: str | None = None, *, every: bool = True
    ) -> Self:
        """Use servers that run already; they share our file system. ``every``: all must answer, or else one of them.

        Raises InputError when they don't answer, RunError when one refuses the key.
        """
        server = cls([url.rstrip("/") for url in urls], request_timeout=request_timeout, key=key)
        silent = {replica: problem for replica in server._replicas.members if (problem := server._silent(replica))}
        if silent and (every or len(silent) == len(server.urls)):
            replica, problem = next(iter(silent.items()))
            raise InputError(
                f"engine.urls: {replica.url} does not answer ({problem}); start the server there, or mend the URL"
            )
        for replica, problem in silent.items():
            server._replicas.leave_out(replica, problem)
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def left_out(self) -> dict[str, str]:
        """The servers that take no part, by URL, and why."""
        return self._replicas.left_out

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        adapter: str | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        stop_ids: Sequence[int] = (),
        session: int | None = None,
    ) -> Sampled:
        """Sample on the dialogue's server, or on another one when that one fails; see PolicyServer.

        Raises RunError naming the server and its log.
        """
        if adapter is None and self._cpu_slots is not None and len(self.published) >= self._cpu_slots:
            raise RunError(
                f"all {self._cpu_slots} adapter slots of the policy server are in use, and vLLM on a CPU may then run "
                "the base model with an adapter's weights; raise engine.max_loras, or give the base its own server"
            )
        request = {
            "model": adapter or BASE_NAME,
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
        answer = await self._replicas.ask(
            lambda replica: self._post(replica, request), session, lambda: hash((adapter, tuple(prompt_ids)))
        )
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
        """Load ``adapter_dir`` on every server; see PolicyServer. Servers that were left out join if they answer."""
        name, path = adapter_name(adapter_dir), adapter_dir.resolve()
        self._everywhere(lambda replica: self._bring(replica, name, path))
        self.published.append(name)
        self._live[name] = path
        self._replicas.published()
        return name

    def retire(self, name: str) -> None:
        """Unload an adapter on every server that takes part."""
        self._live.pop(name, None)
        self._everywhere(lambda replica: self._load(replica, "unload_lora_adapter", {"lora_name": name}), rejoin=False)

    def follow(self, name: str, left_out: Mapping[str, str]) -> None:
        """Take over what another process has published, and on which servers; see PolicyServer."""
        self.published.append(name)
        self._live[name] = None
        self._replicas.follow(left_out)
        self._replicas.published()

    def report(self) -> EngineReport | None:
        """What was asked of each server since the last report; None where there is only one."""
        return self._replicas.report() if len(self.urls) > 1 else None

    def close(self) -> None:
        """Stop the servers that are ours."""
        stop_all(self.processes)
        self._http.close()

    async def _post(self, replica: Replica, request: dict[str, Any]) -> dict[str, Any]:
        url, name = replica.url, request["model"]
        try:
            response = await self._async_client().post(f"{url}/v1/completions", json=request)
        except httpx.TransportError as error:
            raise _gone(replica, error) from error
        if response.is_error:
            told = f"{url} refused to sample (status {response.status_code}): {message_of(response)}"
            if response.is_server_error:
                raise ReplicaFailed(f"{told}; {_log_of(replica)}", f"status {response.status_code}")
            if response.status_code == httpx.codes.NOT_FOUND and name in self._live:
                raise ReplicaFailed(told, f"it started again and has lost {name}", final=True)
            raise RunError(told)
        return response.json()

    def _everywhere(self, action: Callable[[Replica], None], *, rejoin: bool = True) -> None:
        """Do it on all servers at once. Those that fail are left out as long as one remains; else raises its RunError.

        ``rejoin``: also on those that are left out, which then join.
        """
        members = [replica for replica in self._replicas.members if rejoin or not replica.left_out]

        def outcome(replica: Replica) -> RunError | None:
            try:
                action(replica)
            except RunError as error:
                return error
            return None

        with ThreadPoolExecutor(len(members)) as pool:
            outcomes = dict(zip(members, pool.map(outcome, members), strict=True))
        if all(outcomes.values()):
            raise next(error for replica, error in outcomes.items() if error and not replica.left_out)
        for replica, error in outcomes.items():
            if error is None:
                self._replicas.join(replica)
        for replica, error in outcomes.items():
            if error is not None:
                self._replicas.leave_out(replica, error.reason if isinstance(error, ReplicaFailed) else str(error))

    def _bring(self, replica: Replica, name: str, path: Path) -> None:
        """Load a new adapter, and before it the live ones that a server which started again doesn't have."""
        if len(self.urls) > 1:
            there = self._loaded(replica)
            for live, where in self._live.items():
                if live not in there:
                    self._load(replica, "load_lora_adapter", {"lora_name": live, "lora_path": str(where)})
        self._load(replica, "load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    def _loaded(self, replica: Replica) -> set[str]:
        """The names that a server knows. Raises ReplicaFailed when it doesn't say."""
        if replica.dead:
            raise ReplicaFailed(f"the policy server at {replica.url} has ended; {_log_of(replica)}", "it has ended")
        wait = JOIN_TIMEOUT if replica.left_out else PUBLISH_TIMEOUT
        response = self._ask(replica, "GET", "models", timeout=httpx.Timeout(wait, connect=min(wait, CONNECT_TIMEOUT)))
        if response.is_error:
            raise ReplicaFailed(f"{replica.url}: {message_of(response)}", f"status {response.status_code}")
        return {model["id"] for model in response.json().get("data", ())}

    def _load(self, replica: Replica, action: str, request: dict[str, str]) -> None:
        response = self._ask(replica, "POST", action, json=request)
        if response.is_error:
            raise RunError(
                f"{replica.url}: {action} of {request['lora_name']} failed ({response.status_code}): "
                f"{message_of(response)}; the server needs --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and a "
                "name it has not seen before"
            )

    def _ask(self, replica: Replica, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, f"{replica.url}/v1/{path}", **options)
        except httpx.TransportError as error:
            raise _gone(replica, error) from error

    def _silent(self, replica: Replica) -> str | None:
        """Why a server can't be used; None: it answers and takes the key. Raises RunError when it refuses the key."""
        try:
            self._http.get(f"{replica.url}/health", timeout=CONNECT_TIMEOUT).raise_for_status()
            asked = self._http.get(f"{replica.url}/v1/models", timeout=CONNECT_TIMEOUT)
        except httpx.HTTPError as error:
            return _reason(error)
        if asked.status_code == httpx.codes.UNAUTHORIZED:
            given = "another key" if self._headers else "none"
            raise RunError(
                f"engine.key_env: {replica.url} asks for a key and was given {given}; name the variable with it"
            )
        return None

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            timeout = httpx.Timeout(self._request_timeout, connect=CONNECT_TIMEOUT)
            transport = ConnectionStack(retries=1, keepalive_expiry=KEEPALIVE_SECONDS)
            client = httpx.AsyncClient(timeout=timeout, transport=transport, headers=self._headers)
            open_ones = {known: its for known, its in self._clients.items() if not known.is_closed()}
            self._clients = open_ones | {loop: client}
        return client


def _gone(replica: Replica, error: httpx.TransportError) -> ReplicaFailed:
    reason = _reason(error)
    return ReplicaFailed(
        f"the policy server at {replica.url} does not answer any more ({reason}); {_log_of(replica)}", reason
    )


def _reason(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _log_of(replica: Replica) -> str:
    return replica.process.log_tail() if replica.process else "look at that server's own log"
