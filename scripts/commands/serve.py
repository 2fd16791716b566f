"""``attune serve``: the policy's servers of one machine, for runs that are told of them in `engine.urls`."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from envs.errors import InputError, RunError
from scripts.console import command_app, stderr, stdout
from trainers import assembly
from trainers.config import RunConfig
from trainers.config_file import load_config
from trainers.launch import replicas

LOOPBACK = ("127.0.0.1", "localhost")
POLL_SECONDS = 1.0

app = command_app("attune serve --config configs/grpo_qwen2.5_7b.yaml engine.port=8123")


@app.command(epilog=app.info.epilog)
def serve(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; none: the defaults.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; any but loopback needs engine.key_env.")] = LOOPBACK[
        0
    ],
) -> None:
    """Serve the policy from engine.port on: a copy for each engine.tensor_parallel of devices.engine, until stopped."""
    resolved = load_config(config, overrides or [])
    check_open(resolved, host)
    copies = replicas(resolved)
    model_dir = assembly.policy_dir(resolved, lambda text: stderr.print(text, markup=False))
    from trainers.vllm_server import VllmServer

    place = resolved.run.dir / f"{resolved.run.name}-servers"
    settings = assembly.policy_server_settings(resolved, model_dir, place)
    with ExitStack() as running:
        servers = []
        for copy in copies:
            log = place / f"{socket.gethostname()}-{copy.port}.log"
            own = replace(settings, host=host, port=copy.port, gpus=copy.gpus, log_file=log)
            servers.append(running.enter_context(VllmServer.start(own)))
            stdout().print(f"{host}:{copy.port} serves; its log: {log}", markup=False, soft_wrap=True)
        while True:
            for server in servers:
                if server.process is None or server.process.poll() is not None:
                    raise RunError(f"the policy server at {server.urls[0]} ended by itself; look at {server.log_file}")
            time.sleep(POLL_SECONDS)


def check_open(config: RunConfig, host: str) -> None:
    """Raises InputError where the server would be the wrong one, or open to whoever reaches it."""
    if config.engine.kind != "vllm":
        raise InputError("engine.kind: only vllm serves from a process of its own; set it to vllm")
    if config.engine.port is None:
        raise InputError("engine.port: is needed, so that a run can be told where the servers are; name a port")
    if host not in LOOPBACK and config.engine.key_env is None:
        raise InputError(
            f"engine.key_env: is needed with --host {host}: whoever reaches the server may sample and load adapters; "
            "name the environment variable that holds a key, or serve on loopback"
        )
    assembly.engine_key(config)
