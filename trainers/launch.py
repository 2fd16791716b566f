"""A job for a cluster, made from a run's configuration: which node trains and which serves, as a script of its own.

The run is the same everywhere. On one node it starts its own server, as it does without a launcher. On several, the job
starts servers (``attune serve``) and hands the run their addresses and their key in environment variables, which no
file holds. Every start says ``--resume``, so that a job that is started again goes on. Imports no torch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from envs.errors import InputError
from trainers.config import LAST_PORT, RunConfig
from trainers.config_file import load_config
from trainers.manifest import MANIFEST
from trainers.trainer_config import trainer_conflicts
from trainers.warm_start_config import warm_start_conflicts

Scheduler = Literal["slurm", "skypilot", "torchrun"]
TEMPLATES = Path(__file__).resolve().parent.parent / "configs" / "launch"
FILES: dict[Scheduler, str] = {"slurm": "slurm.sh.j2", "skypilot": "skypilot.yaml.j2", "torchrun": "node.sh.j2"}
URLS_ENV, KEY_ENV = "ATTUNE_ENGINE_URLS", "ATTUNE_ENGINE_KEY"
RENDEZVOUS_PORT = 29500  # torchrun's own default
WARNING_SECONDS = 120  # before a job's time is over
# What a job decides itself, and what it asks for unless told otherwise: whole nodes, where the GPUs of the
# configuration are the machine's, no port is taken, and no process is held to one core.
LAYOUT_OPTIONS = re.compile(r"nodes|ntasks.*|gpus.*|gres|job-name|open-mode|requeue|no-requeue|signal|array|wrap")
WHOLE_NODES: dict[str, Any] = {"exclusive": True, "mem": 0, "output": "%x-%j.out"}
LAYOUT_KEYS = ("accelerators", "job_recovery")


@dataclass(frozen=True)
class Cluster:
    """What is said of the cluster, and is no part of the run. ``resources``: further lines for the scheduler."""

    scheduler: Scheduler
    nodes: int = 1
    serving_nodes: int = 0  # of these, the last ones, that only serve; 0: every node trains and serves
    gpus_per_node: int | None = None  # None: as many as the configuration names
    gpu_type: str | None = None
    setup: Sequence[str] = ("source .venv/bin/activate",)  # shell lines, first on each node
    resources: dict[str, Any] = field(default_factory=dict)
    store: tuple[str, str] | None = None  # SkyPilot: (path, bucket or volume) that outlives a node
    restarts: int = 20  # Slurm: how often a job that ran out of time starts again


@dataclass(frozen=True)
class Replica:
    """One server on one node: its port and the GPUs that share one copy of the model (none: the CPU)."""

    port: int
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Who does what. The first ``training_nodes`` nodes train, with a process for each GPU in ``training``; those from
    ``first_serving`` on serve ``replicas``, which is empty where the job starts no server. ``run_gpus``: where the run
    itself starts servers, on the first node."""

    nodes: int
    training_nodes: int
    training: tuple[int, ...]
    first_serving: int
    replicas: tuple[Replica, ...]
    run_gpus: tuple[int, ...]
    gpus_per_node: int

    @property
    def processes(self) -> int:
        """Training processes on one node."""
        return max(1, len(self.training))

    @property
    def world(self) -> int:
        """Training processes in all."""
        return self.training_nodes * self.processes

    @property
    def idle(self) -> dict[int, list[int]]:
        """The GPUs that have nothing to do, by node; nodes without such are left out."""
        found: dict[int, list[int]] = {}
        for node in range(self.nodes):
            busy = set(self.training if node < self.training_nodes else ())
            busy |= set(self.run_gpus if node == 0 else ())
            busy |= {gpu for copy in self.replicas if node >= self.first_serving for gpu in copy.gpus}
            if left := sorted(set(range(self.gpus_per_node)) - busy):
                found[node] = left
        return found


@dataclass(frozen=True)
class Job:
    """A checked job. ``config`` as the job will read it; ``path`` and ``overrides``: what it is read from."""

    config: RunConfig
    path: Path | None
    overrides: tuple[str, ...]
    cluster: Cluster
    layout: Layout

    @property
    def secrets(self) -> list[str]:
        """The environment variables that the job needs and no file may hold, sorted."""
        sources = self.config.model_sources.values()
        named = {source.endpoint.key_env for source in sources if source.endpoint and source.endpoint.key_env}
        return sorted(named | ({self.config.engine.key_env} - {None}))  # type: ignore[arg-type]

    def render(self) -> str:
        """The scheduler's file, or torchrun's script."""
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            comment_start_string="{%#",  # bash writes ${#array[@]}
            comment_end_string="#%}",
        )
        environment.filters["quote"] = shlex.quote
        given = ["--config", str(self.path)] if self.path else []
        return environment.get_template(FILES[self.cluster.scheduler]).render(
            job=self,
            name=self.config.run.name,
            cluster=self.cluster,
            layout=self.layout,
            arguments=shlex.join([*given, *self.overrides]),
            finished=shlex.quote(str(self.config.run.folder / MANIFEST)),
            gpus=",".join(map(str, self.layout.training)),
            all_gpus=",".join(map(str, range(self.layout.gpus_per_node))),
            options=_slurm_options(self.cluster) if self.cluster.scheduler == "slurm" else [],
            urls_env=self.config.engine.urls_env,
            key_env=self.config.engine.key_env,
            rendezvous_port=RENDEZVOUS_PORT,
            warning_seconds=WARNING_SECONDS,
        )


def plan_job(path: Path | None, overrides: Sequence[str], cluster: Cluster) -> Job:
    """The job that runs this configuration on this cluster. Raises InputError with what can't be, and the remedy."""
    config, added = _configuration(path, overrides, cluster.nodes)
    layout = plan_layout(config, cluster, own_servers=bool(added))
    _check_cluster(cluster, config, layout)
    if cluster.scheduler == "skypilot":
        _check_skypilot(cluster, config, path)
    return Job(config, path, (*overrides, *added), cluster, layout)


def _configuration(path: Path | None, overrides: Sequence[str], nodes: int) -> tuple[RunConfig, list[str]]:
    """The configuration as the job will read it, and what the job adds to it: nothing where servers run already.

    A configuration may be whole only with that: several copies on a node are the job's to start.
    """
    added = [f"engine.urls_env={URLS_ENV}"]
    try:
        config = load_config(path, overrides)
    except InputError as plain:
        if nodes == 1:
            raise
        try:
            config = load_config(path, [*overrides, *added])
        except InputError:
            raise plain from None
    given = config.engine.urls or config.engine.urls_env not in (None, URLS_ENV)
    if nodes == 1 or given or config.engine.kind == "transformers":
        return config, []
    added += [f"engine.key_env={KEY_ENV}"] if config.engine.key_env is None else []
    return load_config(path, [*overrides, *added]), added


def replicas(config: RunConfig) -> tuple[Replica, ...]:
    """The servers of one machine, from `engine.port` on; `engine.replicas` where `devices.engine` names no GPU.

    Raises InputError when the GPUs can't be shared out, or the ports run out.
    """
    gpus, each, port = config.devices.engine, config.engine.tensor_parallel, config.engine.port
    if port is None:
        raise InputError("engine.port: is needed by several nodes, which look for the servers there; name a port")
    if not gpus:
        return tuple(Replica(port + number, ()) for number in range(config.engine.replicas))
    if len(gpus) % each:
        raise InputError(
            f"engine.tensor_parallel: {len(gpus)} devices.engine can't be shared out {each} to a copy; change one"
        )
    found = tuple(
        Replica(port + number, tuple(gpus[first : first + each]))
        for number, first in enumerate(range(0, len(gpus), each))
    )
    if found[-1].port > LAST_PORT or any(copy.port == RENDEZVOUS_PORT for copy in found):
        raise InputError(
            f"engine.port: {len(found)} servers from {port} on would take {found[-1].port}; leave out "
            f"{RENDEZVOUS_PORT}, where the training processes meet, and stay below {LAST_PORT + 1}"
        )
    return found


def plan_layout(config: RunConfig, cluster: Cluster, *, own_servers: bool) -> Layout:
    """Who trains and who serves. ``own_servers``: the job starts the servers. Raises InputError for what can't be."""
    nodes, serving = cluster.nodes, cluster.serving_nodes
    devices = config.devices
    if serving and not own_servers:
        raise InputError(
            "--serving-nodes: this job starts no servers of its own: they are given (engine.urls), or the run on its "
            "one node starts one; remove it"
        )
    if serving >= nodes:
        raise InputError(f"--serving-nodes: {serving} of {nodes} nodes leave none to train; lower it, or raise --nodes")
    if nodes > 1:
        _check_several(config, own_servers)
    layout = Layout(
        nodes=nodes,
        training_nodes=nodes - serving,
        training=tuple(devices.training),
        first_serving=nodes - serving if serving else 0,
        replicas=replicas(config) if own_servers else (),
        run_gpus=_run_gpus(config, own_servers=own_servers),
        gpus_per_node=_gpus_per_node(config, cluster),
    )
    world = layout.world
    # The configuration has checked these for one node.
    problems = [
        *trainer_conflicts(config.trainer, config.policy.dtype, world),
        *warm_start_conflicts(config.warm_start, config.trainer.micro_batch, world),
    ]
    for key, source in config.model_sources.items():
        if source.serve and world > 1:
            problems.append(
                f"{key}.serve: {world} training processes can't share it; start a server, name its endpoint"
            )
    if problems:
        raise InputError("\n".join(f"{nodes} nodes, {world} training processes: {problem}" for problem in problems))
    return layout


def _check_several(config: RunConfig, own_servers: bool) -> None:
    if config.engine.kind == "transformers":
        raise InputError("engine.kind: transformers serves a single training process; use vllm on several nodes")
    if not config.devices.training:
        raise InputError("devices.training: names no GPU, and a CPU trains on one node; name GPUs, or set --nodes 1")
    if own_servers and not config.devices.engine:
        raise InputError("devices.engine: names no GPU to sample on; name those of each serving node, or engine.urls")


def _run_gpus(config: RunConfig, *, own_servers: bool) -> tuple[int, ...]:
    """The GPUs on which the run's own process starts servers: the policy's, and those of clients and judges."""
    served = [source.serve.gpus for source in config.model_sources.values() if source.serve]
    if not own_servers and not config.engine.elsewhere:
        served.append(config.devices.engine)
    return tuple(sorted({gpu for gpus in served for gpu in gpus}))


def _gpus_per_node(config: RunConfig, cluster: Cluster) -> int:
    named = {*config.devices.training, *config.devices.engine, *_run_gpus(config, own_servers=False)}
    least = max(named, default=-1) + 1
    given = least if cluster.gpus_per_node is None else cluster.gpus_per_node
    if given < least:
        raise InputError(
            f"--gpus-per-node: {given} leave out GPU {least - 1}, which the configuration names; raise it to {least}, "
            "or name others under devices"
        )
    return given


def _check_cluster(cluster: Cluster, config: RunConfig, layout: Layout) -> None:
    if cluster.scheduler != "skypilot" and cluster.store:
        raise InputError("--store: is SkyPilot's; elsewhere run.dir names a folder that every node sees")
    if cluster.scheduler == "torchrun" and (cluster.resources or cluster.gpu_type):
        raise InputError("--resource, --gpu-type: torchrun asks no scheduler for anything; remove them")
    for line in cluster.setup:
        if "\n" in line:
            raise InputError("--setup: holds a line break; give the option once for each line")
    for name, value in cluster.resources.items():
        reserved = LAYOUT_OPTIONS.fullmatch(name) if cluster.scheduler == "slurm" else name in LAYOUT_KEYS
        if reserved:
            raise InputError(f"--resource: {name} is the layout's; use --nodes, --gpus-per-node or --gpu-type")
        if cluster.scheduler == "slurm" and not re.fullmatch(r"[a-z][a-z-]*", name):
            raise InputError(f"--resource: {name!r} is no long option of sbatch, such as partition or cpus-per-task")
        if cluster.scheduler == "slurm" and not re.fullmatch(r"[^\s'\"#]*", str(value)):
            raise InputError(f"--resource: {name}={value} can't stand on an #SBATCH line; leave out spaces and quotes")


def _check_skypilot(cluster: Cluster, config: RunConfig, path: Path | None) -> None:
    if cluster.store is None:
        raise InputError(
            "--store: is needed with skypilot, whose machines are thrown away: --store /attune=s3://my-bucket for one "
            "node, --store /attune=my-volume (a volume that all nodes may write to) for several; see docs/launch.md"
        )
    place, source = cluster.store
    if cluster.nodes > 1 and "://" in source:
        raise InputError(
            f"--store: nodes see each other's files in a bucket late, and adapters are handed on as files; name a "
            f"volume that all {cluster.nodes} nodes may write to instead of {source}"
        )
    if not config.run.dir.is_absolute() or not config.run.dir.is_relative_to(place):
        raise InputError(f"run.dir: {config.run.dir} does not lie in the store; add run.dir={place.rstrip('/')}/runs")
    if path and (path.is_absolute() or ".." in path.parts):
        raise InputError(f"--config: {path} must lie below the current folder, which SkyPilot copies to every node")
    if config.devices.training and not cluster.gpu_type:
        raise InputError("--gpu-type: is needed with skypilot, such as H100; `sky gpus list` names them")


def _slurm_options(cluster: Cluster) -> list[str]:
    """The further #SBATCH options, the user's over those for whole nodes."""
    told = WHOLE_NODES | cluster.resources
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in told.items()
        if value is not False and value is not None
    ]
