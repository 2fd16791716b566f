"""The schedulers' own word on the rendered jobs: Slurm on loopback with eight emulated nodes, SkyPilot's parser.

Skipped, saying so, where they are not installed. Slurm: Debian's slurmctld, slurmd, slurm-client and munge, as root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "launch"
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "sinfo")
NODES, FIRST_PORT = 8, 16900
DEVICES = "/dev/tty[0-7]"  # a GPU is any device file to Slurm
CONF = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge.sock
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
NodeName=n[1-8] NodeHostname=localhost NodeAddr=127.0.0.1 Port={first}-{last} CPUs=16 RealMemory=32000 Gres=gpu:h100:8
PartitionName=gpu Nodes=n[1-8] Default=YES State=UP
"""
pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands reach a cluster of this test's own, on loopback."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"Slurm is not installed here: no {', '.join(missing)}")
    if os.geteuid() or not Path("/dev/tty7").exists():
        pytest.skip("Slurm's daemons need root, and /dev/tty0 to /dev/tty7 as GPUs")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # munged wants a way that others can't change
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    told = {"folder": folder, "port": FIRST_PORT, "first": FIRST_PORT + 1, "last": FIRST_PORT + NODES}
    (folder / "slurm.conf").write_text(CONF.format(**told), encoding="utf-8")
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu Type=h100 File={DEVICES}\n", encoding="utf-8")
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    places = {
        "key-file": "key",
        "socket": "munge.sock",
        "pid-file": "munged.pid",
        "log-file": "log",
        "seed-file": "seed",
    }
    munged = ["munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in places.items())]
    daemons = [munged, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", f"n{n}"] for n in range(1, NODES + 1))]
    with ExitStack() as running:
        for command in daemons:
            log = running.enter_context((folder / "daemons.log").open("ab"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            running.callback(daemon.wait, 30)
            running.callback(daemon.terminate)
            time.sleep(1.0)
        deadline = time.monotonic() + 90
        while _states(environment) != {"idle"}:
            assert time.monotonic() < deadline, (folder / "ctld.log").read_text(encoding="utf-8")[-3000:]
            time.sleep(1.0)
        yield environment


def _states(environment: dict[str, str]) -> set[str]:
    told = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%t"], env=environment, capture_output=True, text=True, timeout=60
    )
    return set(told.stdout.split())


def asked(environment: dict[str, str], script: str) -> tuple[int, str]:
    """The status and the answer of `sbatch --test-only`."""
    command = ["sbatch", "--test-only"]
    done = subprocess.run(command, input=script, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("nodes", "where"), [(1, "nodes n1 "), (2, "nodes n[1-2] "), (8, "nodes n[1-8] ")])
def test_slurm_would_run_the_job_on_so_many_nodes(slurm: dict[str, str], nodes: int, where: str) -> None:
    status, answer = asked(slurm, (GOLDEN / f"slurm-{nodes}.sh").read_text(encoding="utf-8"))
    assert status == 0 and where in answer, answer


@pytest.mark.parametrize(
    ("right", "wrong"), [("--nodes=8\n", "--nodes=9\n"), ("h100:8", "h100:9"), ("USR1@120", "USR9@x")]
)
def test_slurm_refuses_a_job_that_is_spoiled(slurm: dict[str, str], right: str, wrong: str) -> None:
    script = (GOLDEN / "slurm-8.sh").read_text(encoding="utf-8")
    assert right in script
    assert asked(slurm, script.replace(right, wrong))[0] != 0


@pytest.mark.parametrize("nodes", [1, 2, 8])
def test_skypilot_reads_the_job(nodes: int) -> None:
    sky = shutil.which("sky")
    if sky is None:
        pytest.skip("SkyPilot is not installed here: no sky")
    python = Path(sky).read_text(encoding="utf-8").splitlines()[0].removeprefix("#!").strip()
    code = "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); print('nodes', task.num_nodes)"
    line = [python, "-c", code, str(GOLDEN / f"skypilot-{nodes}.yaml")]
    told = {**os.environ, "ATTUNE_ENGINE_KEY": "a key"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=280, env=told)
    assert done.returncode == 0 and f"nodes {nodes}" in done.stdout, done.stderr[-3000:]
