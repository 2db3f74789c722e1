"""launch/slurm.sbatch, with stand-ins for what SLURM has: what would be started, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
PROGRAM = ["python", "examples/train_torch.py", "--label", "a 'quoted' word"]

# Writes down what it is called with. scontrol and `srun --mpi=list` answer as SLURM's do.
STAND_IN = """#!/usr/bin/env python3
import json, os, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "scontrol":
    assert arguments == ["show", "hostnames", "node[1-2]"], arguments
    print("node1\\nnode2")
elif arguments == ["--mpi=list"]:
    print(os.environ["MPI_LIST"], file=sys.stderr)
else:
    kept = ("OMP_", "OMPI_MCA_btl", "OMPI_MCA_pml", "HOROVOD_GLOO_IFACE", "NCCL_")
    variables = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    print(json.dumps({"name": name, "arguments": arguments, "variables": variables, "folder": os.getcwd()}))
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with srun, scontrol and mpirun in it."""
    for name in ("srun", "scontrol", "mpirun"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(
    tools: Path, *program: str, before: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script as SLURM does on the first node: elsewhere than the checkout, from a copy."""
    copy = tools / "spool"
    copy.write_bytes(SCRIPT.read_bytes())
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "8",
        "MPI_LIST": "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4",
        **variables,
    }
    return subprocess.run(
        [*before, "bash", str(copy), *program],
        cwd=tools,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def checkout(tools: Path) -> Path:
    """A checkout without an environment of its own, so that the stand-in for mpirun is the one that is found."""
    folder = tools / "checkout"
    (folder / "launch").mkdir(parents=True)
    for path in (ROOT / "launch").iterdir():
        if path.suffix in {".sh", ".py"}:
            shutil.copy(path, folder / "launch")
    return folder


def test_mpirun(tools: Path, checkout: Path) -> None:
    done = submit(tools, *PROGRAM, SLURM_SUBMIT_DIR=str(checkout), HVD_COMPRESS_INTERFACE="ib0")
    assert done.returncode == 0, done.stderr
    ran = json.loads(done.stdout)
    assert ran["name"] == "mpirun"
    assert ran["folder"] == str(checkout)
    words = ran["arguments"]
    assert words[:10] == [
        *("--host", "node1:2,node2:2", "-np", "4", "--bind-to", "core", "--map-by", "slot:PE=8"),
        *("--mca", "pml"),
    ]
    assert words[words.index("btl_tcp_if_include") + 1] == words[words.index("oob_tcp_if_include") + 1] == "ib0"
    assert words[-len(PROGRAM) :] == PROGRAM
    passed = {words[at + 1] for at, word in enumerate(words) if word == "-x"}
    assert {"PATH", "OMP_NUM_THREADS", "HOROVOD_GLOO_IFACE", "NCCL_SOCKET_IFNAME"} <= passed
    assert ran["variables"]["OMP_NUM_THREADS"] == "8"


def test_srun(tools: Path) -> None:
    done = submit(tools, *PROGRAM, HVD_COMPRESS_STARTER="srun", HVD_COMPRESS_INTERFACE="ib0")
    assert done.returncode == 0, done.stderr
    ran = json.loads(done.stdout)
    assert ran["name"] == "srun"
    options = ["--mpi=pmix", "--kill-on-bad-exit=1", "--cpus-per-task=8", "--cpu-bind=cores"]
    assert ran["arguments"] == [*options, *PROGRAM]
    assert ran["folder"] == str(ROOT)
    assert ran["variables"] == {
        "OMP_NUM_THREADS": "8",
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "tcp,self,vader",
        "OMPI_MCA_btl_tcp_if_include": "ib0",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        "HOROVOD_GLOO_IFACE": "ib0",
        "NCCL_SOCKET_IFNAME": "ib0",
    }


# As srun: starts a command on every node of the list, or of the allocation, each a host with a name of its own.
SRUN = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
nodes=node1,node2
while [[ ${1:-} == -* ]]; do
    [[ $1 != --nodelist=* ]] || nodes=${1#*=}
    shift
done
number=0
for node in ${nodes//,/ }; do
    SLURM_NODEID=$number SLURM_PROCID=$number unshare --uts bash -c 'hostname "$0"; exec "$@"' "$node" "$@" &
    number=$((number + 1))
done
wait
"""
RANK = """
import os, socket, sys
import horovod.torch as hvd, torch
hvd.init()
total = int(hvd.allreduce(torch.ones(1), op=hvd.Sum))
with open(f"{sys.argv[1]}/rank{hvd.rank()}", "w") as file:
    print(socket.gethostname(), hvd.local_rank(), total, os.environ["OMP_NUM_THREADS"], file=file)
"""


@pytest.mark.multiprocess
def test_open_mpi_starts_its_daemons_with_srun(tools: Path) -> None:
    """A real job on an allocation that is not: mpirun on the first node, and no ssh to the second."""
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', "node1"]
    if subprocess.run([*named, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a host name of one's own needs root")
    (tools / "mpirun").unlink()
    (tools / "srun").write_text(SRUN)
    allocation = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOBID": "77",
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_TASKS_PER_NODE": "1(x2)",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "HVD_COMPRESS_INTERFACE": "lo",
        "OMPI_MCA_plm_rsh_agent": "false",
        "LOG": str(tools / "log"),
    }
    done = submit(tools, "python", "-c", RANK, str(tools), before=named, **allocation)
    assert done.returncode == 0, done.stderr
    assert "orted" in (tools / "log").read_text()
    assert [(tools / f"rank{rank}").read_text().split() for rank in range(2)] == [
        ["node1", "0", "2", "1"],
        ["node2", "0", "2", "1"],
    ]


@pytest.mark.parametrize(
    ("program", "variables", "message"),
    [
        ([], {}, "nothing to run"),
        (PROGRAM, {"SLURM_JOB_NODELIST": ""}, "there is no allocation"),
        (PROGRAM, {"SLURM_SUBMIT_DIR": "/usr"}, "/usr is not the checkout"),
        (PROGRAM, {"HVD_COMPRESS_STARTER": "ssh"}, "neither mpirun nor srun"),
        (PROGRAM, {"HVD_COMPRESS_STARTER": "srun", "MPI_LIST": "none pmi2 cray_shasta"}, "no PMIx plugin"),
    ],
)
def test_refused(tools: Path, program: list[str], variables: dict[str, str], message: str) -> None:
    done = submit(tools, *program, **variables)
    assert done.returncode == 125
    assert message in done.stderr
    assert done.stdout == ""


def test_the_options_in_the_script_are_those_of_sbatch() -> None:
    options = re.findall(r"^#SBATCH --([a-z-]+)=\S+$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert options == ["job-name", "nodes", "ntasks-per-node", "cpus-per-task", "time", "output"]
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    commands = [at for at, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(at for at, line in enumerate(lines) if line.startswith("#SBATCH")) < commands[0]
    example = next(line for line in lines if line.startswith("#     sbatch"))
    words = shlex.split(example.removeprefix("#"))
    assert words[words.index("launch/slurm.sbatch") + 1] == "python"
