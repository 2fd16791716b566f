"""Jobs for a cluster: who trains and who serves, what the scripts do on each node, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import InputError
from trainers.config import Devices, Engine, RunConfig
from trainers.launch import RENDEZVOUS_PORT, Cluster, Job, plan_job, plan_layout

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "launch"
CONFIG = Path("configs/grpo_qwen2.5_7b_8gpu.yaml")
EIGHT = ["devices.training=[0,1,2,3,4,5,6,7]", "devices.engine=[0,1,2,3,4,5,6,7]"]
SCHEDULERS = {"slurm": "sh", "skypilot": "yaml", "torchrun": "sh"}
# Notes what it was called with, and stays until it is stopped where it serves.
STAND_IN = """#!/bin/bash
{
    printf '%s\\0' "${0##*/}" "${CUDA_VISIBLE_DEVICES-}" "${ATTUNE_ENGINE_URLS-}" "${ATTUNE_ENGINE_KEY-}" "$@"; echo
} >> "$CALLS"
if [[ $1 == serve ]]; then exec sleep 60; fi
exit "${STATUS-0}"
"""


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def shipped(scheduler: str, nodes: int) -> Job:
    """The job of the golden files: eight nodes are four that train and four that serve."""
    told: dict[str, Any] = {"nodes": nodes, "serving_nodes": 4 if nodes == 8 else 0}
    overrides = EIGHT if nodes == 8 else []
    if scheduler == "slurm":
        told |= {"gpu_type": "h100"}
    if scheduler == "skypilot":
        told |= {"gpu_type": "H100", "store": ("/attune", "s3://my-bucket" if nodes == 1 else "my-volume")}
        overrides = ["run.dir=/attune/runs", *overrides]
    return plan_job(CONFIG, overrides, Cluster(scheduler, **told))  # type: ignore[arg-type]


@pytest.mark.parametrize("nodes", [1, 2, 8])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_rendered_job_is_the_golden_one_and_bash_reads_it(scheduler: str, nodes: int) -> None:
    rendered = shipped(scheduler, nodes).render()
    assert rendered == (GOLDEN / f"{scheduler}-{nodes}.{SCHEDULERS[scheduler]}").read_text(encoding="utf-8")
    scripts = [rendered]
    if scheduler == "skypilot":
        task = yaml.safe_load(rendered)
        assert task["num_nodes"] == nodes and task["resources"]["accelerators"] == "H100:8"
        scripts = [task["setup"], task["run"]]
    for script in scripts:
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_rendered_job_holds_the_key(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTUNE_ENGINE_KEY", "a-key-that-nobody-else-has")
    assert "a-key-that-nobody-else-has" not in shipped(scheduler, 2).render()


def called(tmp_path: Path, script: str, **variables: str) -> tuple[int, list[list[str]]]:
    """Run a script with stand-ins for what it starts; its status, and the calls: name, GPUs, URLs, key, arguments."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir(exist_ok=True)
    calls.write_text("", encoding="utf-8")
    for name in ("attune", "torchrun"):
        (programs / name).write_text(STAND_IN, encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), **variables}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, timeout=60, capture_output=True)
    return done.returncode, [line.split("\0")[:-1] for line in calls.read_text(encoding="utf-8").splitlines()]


def node_job(tmp_path: Path, nodes: int, *overrides: str, serving_nodes: int = 0) -> Job:
    cluster = Cluster("torchrun", nodes=nodes, serving_nodes=serving_nodes, setup=["true"])
    return plan_job(CONFIG, [f"run.dir={tmp_path}/runs", *overrides], cluster)


def test_on_one_node_torchrun_starts_a_process_for_each_training_gpu_and_the_run_its_own_server(tmp_path: Path) -> None:
    status, [call] = called(tmp_path, node_job(tmp_path, 1).render())
    assert status == 0
    assert call[:4] == ["torchrun", "0,1,2,3", "", ""]
    assert call[4:9] == ["--standalone", "--nproc-per-node=4", "-m", "scripts.attune", "train"]
    assert call[-1] == "--resume"


def test_a_single_training_process_needs_no_torchrun(tmp_path: Path) -> None:
    job = plan_job(None, [f"run.dir={tmp_path}/runs"], Cluster("torchrun", setup=["true"]))
    status, [call] = called(tmp_path, job.render(), CUDA_VISIBLE_DEVICES="")
    assert (status, call) == (0, ["attune", "", "", "", "train", f"run.dir={tmp_path}/runs", "--resume"])


def test_on_two_nodes_each_serves_and_trains_and_knows_both_servers_and_the_key(tmp_path: Path) -> None:
    script = node_job(tmp_path, 2).render()
    told = {"NODES": "10.0.0.1 10.0.0.2", "NODE_RANK": "0", "ATTUNE_ENGINE_KEY": "secret"}
    status, calls = called(tmp_path, script, **told)
    serve, train = sorted(calls)
    assert status == 0
    assert serve[0] == "attune" and serve[-2:] == ["--host", "10.0.0.1"]
    assert train[:2] == ["torchrun", "0,1,2,3"]
    assert serve[2:4] == train[2:4] == ["http://10.0.0.1:8123,http://10.0.0.2:8123", "secret"]
    assert train[4:9] == [
        *("--node-rank=0", "--nnodes=2", "--nproc-per-node=4"),
        *("--master-addr=10.0.0.1", f"--master-port={RENDEZVOUS_PORT}"),
    ]


def test_a_job_of_several_nodes_does_not_start_without_a_key_or_with_another_number_of_nodes(tmp_path: Path) -> None:
    script = node_job(tmp_path, 2).render()
    assert called(tmp_path, script, NODES="10.0.0.1 10.0.0.2", NODE_RANK="0") == (1, [])
    assert called(tmp_path, script, NODES="10.0.0.1", NODE_RANK="0", ATTUNE_ENGINE_KEY="secret") == (2, [])


def test_a_node_ends_with_the_status_of_its_training(tmp_path: Path) -> None:
    told = {"NODES": "10.0.0.1 10.0.0.2", "NODE_RANK": "1", "ATTUNE_ENGINE_KEY": "secret", "STATUS": "7"}
    assert called(tmp_path, node_job(tmp_path, 2).render(), **told)[0] == 7


def test_a_node_that_only_serves_stays_until_the_run_is_finished_and_ends_well(tmp_path: Path) -> None:
    job = node_job(tmp_path, 2, *EIGHT, serving_nodes=1)
    told = {"NODES": "10.0.0.1 10.0.0.2", "NODE_RANK": "1", "ATTUNE_ENGINE_KEY": "secret"}
    # The stand-in for the server ends the run: the manifest is there once serving has begun.
    manifest = job.config.run.folder / "manifest.json"
    manifest.parent.mkdir(parents=True)
    script = job.render().replace("servers=$!", f'servers=$!; sleep 1; touch "{manifest}"')
    status, calls = called(tmp_path, script, **told)
    assert status == 0 and [call[4] for call in calls] == ["serve"]


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    job = node_job(tmp_path, 1)
    job.config.run.folder.mkdir(parents=True)
    (job.config.run.folder / "manifest.json").touch()
    assert called(tmp_path, job.render()) == (0, [])


def test_the_configuration_of_the_job_is_the_one_that_its_command_line_reads() -> None:
    job = shipped("slurm", 8)
    line = next(line for line in job.render().splitlines() if line.startswith("arguments=("))
    words = shlex.split(line.removeprefix("arguments=(").removesuffix(")"))
    assert plan_job(Path(words[1]), words[2:], job.cluster).config == job.config


@given(
    nodes=st.integers(1, 12),
    serving=st.integers(0, 12),
    training=st.integers(1, 4),
    copies=st.integers(1, 4),
    each=st.integers(1, 2),
)
@settings(deadline=None, max_examples=60)
def test_every_gpu_is_used_once_and_every_port_is_free(
    nodes: int, serving: int, training: int, copies: int, each: int
) -> None:
    gpus = list(range(training + copies * each))
    config = RunConfig(
        devices=Devices(training=gpus[:training], engine=gpus[training:]),
        engine=Engine(urls_env="URLS", key_env="KEY", port=8000, tensor_parallel=each),
        trainer={"cards_per_step": 12 * 11 * 7, "dialogues_per_card": 80, "minibatches": 1, "micro_batch": 1},  # type: ignore[arg-type]
    )
    cluster = Cluster("slurm", nodes=nodes, serving_nodes=serving)
    if serving >= nodes:
        with pytest.raises(InputError, match="--serving-nodes"):
            plan_layout(config, cluster, own_servers=True)
        return
    if 12 * 11 * 7 * 80 % ((nodes - serving) * training):
        return
    layout = plan_layout(config, cluster, own_servers=True)
    assert layout.world == layout.training_nodes * training
    ports = [copy.port for copy in layout.replicas]
    assert len(ports) == copies == len({*ports} - {RENDEZVOUS_PORT})
    for node in range(nodes):
        trains = list(layout.training) if node < layout.training_nodes else []
        serves = [gpu for copy in layout.replicas if node >= layout.first_serving for gpu in copy.gpus]
        assert sorted([*trains, *serves, *layout.idle.get(node, [])]) == gpus


@pytest.mark.parametrize(
    ("cluster", "overrides", "told"),
    [
        ({"serving_nodes": 1}, [], r"--serving-nodes: this job starts no servers .*remove it"),
        ({"nodes": 2, "serving_nodes": 2}, [], r"--serving-nodes: 2 of 2 nodes leave none to train"),
        ({"gpus_per_node": 4}, [], r"--gpus-per-node: 4 leave out GPU 7.*raise it to 8"),
        ({"nodes": 2}, ["engine.port=null"], r"engine\.port: is needed"),
        ({"nodes": 2}, ["engine.port=29500"], r"engine\.port: .*leave out 29500"),
        ({"nodes": 2}, ["engine.tensor_parallel=3"], r"engine\.tensor_parallel"),
        ({"nodes": 3}, [], r"3 nodes, 12 training processes: trainer\.micro_batch: 256 dialogues a step"),
        ({"store": ("/a", "b")}, [], r"--store: is SkyPilot's"),
        ({"setup": ["a\nb"]}, [], r"--setup: holds a line break"),
        ({"resources": {"nodes": "4"}}, [], r"--resource: nodes is the layout's"),
        ({"resources": {"Partition": "gpu"}}, [], r"--resource: 'Partition' is no long option"),
        ({"resources": {"comment": "a b"}}, [], r"--resource: comment=a b can't stand"),
        ({"scheduler": "torchrun", "gpu_type": "h100"}, [], r"--gpu-type: torchrun asks no scheduler"),
        ({"scheduler": "skypilot", "gpu_type": "H100"}, [], r"--store: is needed with skypilot"),
        (
            {"scheduler": "skypilot", "gpu_type": "H100", "nodes": 2, "store": ("/a", "s3://b")},
            ["run.dir=/a/runs"],
            r"--store: nodes see each other's files in a bucket late.*volume",
        ),
        ({"scheduler": "skypilot", "gpu_type": "H100", "store": ("/a", "b")}, [], r"run\.dir: .*add run\.dir=/a/runs"),
        ({"scheduler": "skypilot", "store": ("/a", "b")}, ["run.dir=/a/runs"], r"--gpu-type: is needed"),
    ],
)
def test_what_can_not_be_is_refused_with_the_remedy(
    cluster: dict[str, Any], overrides: Sequence[str], told: str
) -> None:
    with pytest.raises(InputError, match=f"(?s){told}"):
        plan_job(CONFIG, overrides, Cluster(**{"scheduler": "slurm", **cluster}))


def test_several_nodes_need_gpus_to_train_and_to_sample_and_vllm() -> None:
    two = Cluster("slurm", nodes=2)
    with pytest.raises(InputError, match=r"devices\.training: names no GPU"):
        plan_job(None, ["engine.port=8000"], two)
    with pytest.raises(InputError, match=r"devices\.engine: names no GPU"):
        plan_job(None, ["engine.port=8000", "devices.training=[0]"], two)
    with pytest.raises(InputError, match=r"engine\.kind: transformers serves a single"):
        plan_job(None, ["engine.kind=transformers", "devices.training=[0]"], two)


def test_servers_that_run_already_are_used_and_none_is_started() -> None:
    job = plan_job(CONFIG, ["engine.urls=[http://10.0.0.9:1]", "engine.port=null"], Cluster("slurm", nodes=2))
    assert job.layout.replicas == () and job.secrets == [] and "attune serve" not in job.render()


def test_what_is_asked_of_slurm_replaces_what_it_is_asked_for_whole_nodes() -> None:
    resources = {"exclusive": False, "mem": "64G", "time": "24:00:00"}
    rendered = plan_job(CONFIG, [], Cluster("slurm", resources=resources)).render()
    asked = [line.removeprefix("#SBATCH ") for line in rendered.splitlines() if line.startswith("#SBATCH")]
    assert {"--mem=64G", "--time=24:00:00", "--requeue"} <= set(asked)
    assert "--exclusive" not in asked and "--mem=0" not in asked


def test_the_command_prints_the_job_and_starts_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from scripts.attune import main

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    line = ["launch", "torchrun", "-c", str(CONFIG), "--nodes", "2", "--render", "--json"]
    assert main(line) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["processes"] == 8 and answer["answer"] is None
    assert answer["rendered"] == (GOLDEN / "torchrun-2.sh").read_text(encoding="utf-8")


def test_a_scheduler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from scripts.attune import main

    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["launch", "slurm", "engine.kind=transformers"]) == 2
    assert "sbatch: is not installed here; say --render" in capsys.readouterr().err.replace("\n", " ")
