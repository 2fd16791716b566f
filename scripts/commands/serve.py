"""``attune serve``: the policy's servers of one machine, for runs that are told of them in `engine.urls`."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from envs.errors import InputError, RunError
from scripts.console import command_app, stderr, stdout
from trainers import assembly
from trainers.config import RunConfig
from trainers.config_file import load_config
from trainers.launch import replicas

if TYPE_CHECKING:
    from trainers.vllm_process import VllmProcess

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
    """Serve the policy from engine.port on until stopped: a copy for each engine.tensor_parallel of devices.engine, or
    engine.replicas on a CPU."""
    resolved = load_config(config, overrides or [])
    check_open(resolved, host)
    copies = replicas(resolved)
    model_dir = assembly.policy_dir(resolved, lambda text: stderr.print(text, markup=False))
    from trainers.vllm_process import start_all, stop_all

    place = resolved.run.dir / f"{resolved.run.name}-servers"
    settings = assembly.policy_server_settings(resolved, model_dir, place)
    logs = [place / f"{socket.gethostname()}-{copy.port}.log" for copy in copies]
    servers = start_all(
        [
            replace(settings, host=host, port=copy.port, gpus=copy.gpus, log_file=log)
            for copy, log in zip(copies, logs, strict=True)
        ]
    )
    try:
        for copy, log in zip(copies, logs, strict=True):
            stdout().print(f"{host}:{copy.port} serves; its log: {log}", markup=False, soft_wrap=True)
        watch(servers)
    finally:
        stop_all(servers)


def watch(servers: Sequence[VllmProcess]) -> None:
    """Tell of each server that ends by itself: runs go on with the others. Raises RunError when none is left."""
    running = list(servers)
    while True:
        for server in [server for server in running if not server.alive]:
            running.remove(server)
            told = f"the policy server at {server.url} ended by itself; look at {server.settings.log_file}"
            if not running:
                raise RunError(f"{told}; none is left")
            stderr.print(f"{told}; {len(running)} of {len(servers)} are left", markup=False)
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
