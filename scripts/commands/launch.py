"""``attune launch``: a run's configuration as a job for Slurm, SkyPilot or plain torchrun, printed or submitted."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from envs.errors import InputError, RunError
from scripts.commands.train import check_inputs
from scripts.console import JsonFlag, command_app, print_json, stderr, stdout
from trainers.launch import KEY_ENV, Cluster, Job, Scheduler, plan_job

app = command_app("attune launch slurm --config configs/grpo_qwen2.5_7b_8gpu.yaml --nodes 2 --render")


@app.command(epilog=app.info.epilog)
def launch(
    scheduler: Annotated[Scheduler, typer.Argument(help="Who starts the job.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; none: the defaults.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    serving_nodes: Annotated[
        int, typer.Option(min=0, help="Of these, the last ones, which only serve; 0: all train and serve.")
    ] = 0,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs of a machine; none: as many as the configuration names.")
    ] = None,
    gpu_type: Annotated[str | None, typer.Option(help="Their type, as the scheduler names it, such as H100.")] = None,
    setup: Annotated[
        list[str] | None, typer.Option(help="Shell line, first on each node; none: source .venv/bin/activate.")
    ] = None,
    resource: Annotated[
        list[str] | None, typer.Option(help="name=value: an option of sbatch, or a key of SkyPilot's resources.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="SkyPilot: /path=bucket or volume, which keeps the run's folder.")
    ] = None,
    restarts: Annotated[int, typer.Option(min=0, help="Slurm: how often a job out of time starts again.")] = 20,
    render: Annotated[bool, typer.Option("--render", help="Print what would be submitted, and stop.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make a job that trains as the configuration says and goes on where it was cut off; print it, or submit it."""
    cluster = Cluster(
        scheduler=scheduler,
        nodes=nodes,
        serving_nodes=serving_nodes,
        gpus_per_node=gpus_per_node,
        gpu_type=gpu_type,
        setup=tuple(setup or Cluster.setup),
        resources=_resources(scheduler, resource or []),
        store=_store(store),
        restarts=restarts,
    )
    job = plan_job(config, overrides or [], cluster)
    check_inputs(job.config)
    for node, gpus in job.layout.idle.items():
        stderr.print(f"node {node}: nothing to do for GPU {', '.join(map(str, gpus))}", markup=False)
    rendered = job.render()
    answer = None if render else submit(job, rendered)
    if json:
        print_json({"scheduler": scheduler, "processes": job.layout.world, "rendered": rendered, "answer": answer})
    elif render:
        stdout().print(rendered, markup=False, soft_wrap=True, end="")
    else:
        stdout().print(answer, markup=False, soft_wrap=True)


def _resources(scheduler: Scheduler, given: list[str]) -> dict[str, Any]:
    """name=value as a mapping. sbatch's values stay as they are: 24:00:00 is a number in YAML."""
    found: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise InputError(f"--resource: {one!r} is not of the form name=value, such as partition=gpu")
        flags = {"true": True, "false": False}
        found[name] = flags.get(value, value) if scheduler == "slurm" else yaml.safe_load(value)
    return found


def _store(given: str | None) -> tuple[str, str] | None:
    if given is None:
        return None
    place, equals, source = given.partition("=")
    if not equals or not source or not Path(place).is_absolute():
        raise InputError(f"--store: {given!r} is not of the form /path=source, such as /attune=s3://my-bucket")
    return place, source


def submit(job: Job, rendered: str) -> str:
    """Hand a job to its scheduler and return what it answers. Raises InputError where there is none, else RunError."""
    if job.cluster.scheduler == "torchrun":
        if job.layout.nodes > 1:
            raise InputError("--nodes: torchrun starts one machine; say --render, and run the script on every node")
        _told(["bash", "-c", rendered], capture=False)
        return f"{job.config.run.folder}: finished"
    if job.cluster.scheduler == "slurm":
        return _told(["sbatch"], given=rendered)
    environment = dict(os.environ)
    if job.config.engine.key_env == KEY_ENV:
        environment.setdefault(KEY_ENV, secrets.token_hex(32))
    if missing := [name for name in job.secrets if not environment.get(name)]:
        raise InputError(f"{missing[0]}: the job needs this environment variable, and it is not set; set it")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(rendered)
        file.flush()
        named = [part for name in job.secrets for part in ("--secret", name)]  # the values stay off the command line
        return _told(["sky", "jobs", "launch", "--yes", "--detach-run", *named, file.name], environment=environment)


def _told(
    command: list[str], *, given: str | None = None, environment: dict[str, str] | None = None, capture: bool = True
) -> str:
    if shutil.which(command[0]) is None:
        raise InputError(f"{command[0]}: is not installed here; say --render and submit the file where it is")
    done = subprocess.run(command, input=given, env=environment, text=True, capture_output=capture)
    if done.returncode:
        told = f": {(done.stderr or done.stdout).strip()}" if capture else ""
        raise RunError(f"{command[0]} ended with status {done.returncode}{told}")
    return done.stdout.strip() if capture else ""
