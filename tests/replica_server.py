"""A small stand-in for a vLLM server: the paths that a run uses, over real sockets, and failures on demand.

    with ReplicaServer() as one, ReplicaServer() as other:
        server = VllmServer.connect([one.url, other.url])

A reply is a function of seed, prompt and adapter, as with vLLM, so it is the same wherever it is sampled.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

BASE = "policy"


def echo(request: dict[str, Any]) -> list[int]:
    """The ids of the reply to a request: as many as it may have, from a hash of what decides them."""
    told = json.dumps([request["seed"], request["prompt"], request["model"]]).encode()
    digest = hashlib.sha256(told).digest()
    return [digest[place % len(digest)] for place in range(request["max_tokens"])]


class ReplicaServer:
    """One server. ``mode``: None answers; "refuse" is gone; "500" and "400" answer so; "hang" never does.

    ``answered`` keeps the requests that were sampled, ``asked`` all of them, ``loads`` what was loaded, in order. While
    ``gate`` is cleared, requests to sample wait for it.
    """

    def __init__(self) -> None:
        self.mode: str | None = None
        self.asked: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.loads: list[str] = []
        self.adapters: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self.gate.set()
        self.stop()

    def start(self) -> None:
        """Listen: at a free port, or again at the one it had, where it knows no adapter any more."""
        self.adapters.clear()
        self.mode = None
        owner = self

        class Handler(_Handler):
            replica = owner

        self._server = _Listener(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Be gone: connections are refused, and requests that wait are dropped without an answer."""
        server, self._server = self._server, None
        self.mode = "refuse"
        if server:
            server.shutdown()
            server.server_close()

    def hold(self) -> None:
        """Wait while the gate is closed; where the server hangs, until the end of the test."""
        (self._released if self.mode == "hang" else self.gate).wait()


class _Listener(ThreadingHTTPServer):
    request_queue_size = 256  # connections that come at once
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    replica: ReplicaServer

    def do_GET(self) -> None:
        if self.replica.mode == "hang":
            self.replica.hold()
            return self._drop()
        names = [BASE, *self.replica.adapters]
        self._send(200, {"data": [{"id": name} for name in names]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        action = self.path.rpartition("/")[2]
        self._sample(request) if action == "completions" else self._load(action, request["lora_name"])

    def _sample(self, request: dict[str, Any]) -> None:
        replica = self.replica
        replica.asked.append(request)
        replica.hold()
        if replica.mode == "refuse":
            return self._drop()
        if replica.mode in ("500", "400"):
            return self._send(int(replica.mode), {"error": {"message": "no"}})
        if request["model"] not in {BASE, *replica.adapters}:
            return self._send(404, {"error": {"message": f"The model `{request['model']}` does not exist."}})
        replica.answered.append(request)
        ids = echo(request)
        choice = {
            "token_ids": ids,
            "logprobs": {"token_logprobs": [-0.5] * len(ids)},
            "prompt_token_ids": request["prompt"],
            "finish_reason": "length",
        }
        self._send(200, {"choices": [choice]})

    def _load(self, action: str, name: str) -> None:
        replica = self.replica
        if replica.mode in ("500", "400"):
            return self._send(int(replica.mode), {"error": {"message": "no room"}})
        if action == "unload_lora_adapter":
            replica.adapters.discard(name)
            return self._send(200, {})
        if name in replica.adapters:
            return self._send(400, {"error": {"message": f"{name} has already been loaded"}})
        replica.adapters.add(name)
        replica.loads.append(name)
        self._send(200, {})

    def _drop(self) -> None:
        """End the connection without an answer, as a process that dies does."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
