"""launch/mpirun.sh and launch/horovodrun.sh: their commands, and real jobs on hosts that share nothing but the disk."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SSH = Path(__file__).with_name("ssh.sh")
RANK = """
import os, socket, sys
import horovod.torch as hvd, torch
hvd.init()
total = int(hvd.allreduce(torch.ones(1), op=hvd.Sum))
cores = len(os.sched_getaffinity(0))
about = [socket.gethostname(), hvd.local_size(), total, cores, os.environ.get("OMP_NUM_THREADS"),
         os.environ.get("HOROVOD_CYCLE_TIME"), os.getcwd() == sys.argv[1]]
with open(f"{sys.argv[2]}/rank{hvd.rank()}", "w") as file:
    print(*about, file=file)
"""


def start(launcher: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "HOROVOD_"))}
    return subprocess.run(
        [f"launch/{launcher}.sh", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, **variables},
        check=False,
    )


def dry_run(launcher: str, *arguments: str, **variables: str) -> tuple[list[str], list[str]]:
    """Of a dry run: the settings, and the command as words."""
    done = start(launcher, "--dry-run", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    *settings, command = done.stdout.splitlines()
    return settings, shlex.split(command)


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-- true", "one of the arguments --hosts --hostfile is required"),
        ("--hosts a,b", "the program comes after --"),
        ("--hosts a,b python train.py", "unrecognized arguments: python train.py (the program comes after --)"),
        ("--hosts a --hostfile b -- true", "not allowed with argument"),
        ("--hosts a:0 -- true", "'a:0' is not a host with a number of ranks"),
        ("--hosts a:2, -- true", "'' is not a host"),
        ("--hosts -a -- true", "expected one argument"),
        ("--hosts a;reboot -- true", "is not a host"),
        ("--hostfile no-such-file -- true", "no-such-file cannot be read: No such file"),
        ("--hosts a --threads 0 -- true", "'0' is not a whole number"),
        ("--hosts a --interface 10.0.0.0/8 -- true", "the name of an interface"),
        ("--hosts a --thread 3 -- true", "unrecognized arguments: --thread 3"),
    ],
)
@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun"])
def test_wrong_options(launcher: str, arguments: str, message: str) -> None:
    done = start(launcher, *arguments.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert f"usage: launch/{launcher}.sh" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no host"),
        ("# none\n\n", "names no host"),
        ("a slots=2\nb slots=x\n", ":2: b slots=x' is not a host"),
        ("a slots=2 max_slots=3\n", "is not like: node1 slots=2"),
    ],
)
def test_wrong_hostfile(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "hosts").write_text(content)
    done = start("mpirun", "--hostfile", str(tmp_path / "hosts"), "--", "true")
    assert done.returncode == 2
    assert message in done.stderr


def test_mpirun_command() -> None:
    settings, words = dry_run(
        *("mpirun", "--hostfile", "launch/hostfile", "--threads", "4", "--interface", "eth0", "--"),
        *("python", "train.py", "--label", "a b"),
        HOROVOD_CYCLE_TIME="3",
        CUDA_VISIBLE_DEVICES="0",
        OMPI_MCA_x="1",
        SECRET="s",
    )
    assert settings == ["export OMP_NUM_THREADS=4", "export HOROVOD_GLOO_IFACE=eth0", "export NCCL_SOCKET_IFNAME=eth0"]
    assert Path(words[0]).is_absolute()  # which is how mpirun knows where it is on other hosts
    assert words[1:9] == ["--host", "node1:2,node2:2", "-np", "4", "--bind-to", "core", "--map-by", "slot:PE=4"]
    settings = {words[at + 1]: words[at + 2] for at, word in enumerate(words) if word == "--mca"}
    assert settings == {
        "pml": "ob1",
        "btl": "tcp,self,vader",
        "btl_tcp_if_include": "eth0",
        "oob_tcp_if_include": "eth0",
    }
    passed = {words[at + 1] for at, word in enumerate(words) if word == "-x"}
    assert {"PATH", "HOROVOD_CYCLE_TIME", "OMP_NUM_THREADS", "HOROVOD_GLOO_IFACE", "TF_USE_LEGACY_KERAS"} <= passed
    # mpirun takes its own along; the others are of this host, or nobody's business
    assert not passed & {"OMPI_MCA_x", "CUDA_VISIBLE_DEVICES", "SECRET", "HOME"}
    assert words[-4:] == ["python", "train.py", "--label", "a b"]


def test_without_options_nothing_is_bound_and_what_the_caller_set_stays() -> None:
    settings, words = dry_run("mpirun", "--hosts", "a,b:3", "--", "true")
    assert settings == []
    assert words[1:9] == ["--host", "a:1,b:3", "-np", "4", "--bind-to", "none", "--map-by", "slot"]
    settings, _ = dry_run("mpirun", "--hosts", "a", "--threads", "2", "--", "true", OMP_NUM_THREADS="1")
    assert settings == []


def test_horovodrun_command() -> None:
    _, words = dry_run("horovodrun", "--hosts", "a:2,b:2", "--threads", "4", "--interface", "eth0", "--", "true", "x y")
    assert words[1:] == [
        *("-np", "4", "-H", "a:2,b:2", "--network-interfaces", "eth0", "--mpi"),
        "--binding-args=--bind-to core --map-by slot:PE=4",
        f"--mpi-args=--prefix {Path(sys.prefix).resolve()}",
        *("true", "x y"),
    ]
    _, words = dry_run("horovodrun", "--hosts", "a:2", "--gloo", "--", "true")
    assert words[1:] == ["-np", "2", "-H", "a:2", "--gloo", "true"]


def test_examples() -> None:
    subprocess.run([sys.executable, "-m", "doctest", "launch/cluster.py"], cwd=ROOT, check=True)


# Jobs


@pytest.mark.multiprocess
@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun"])
def test_two_hosts(tmp_path: Path, launcher: str) -> None:
    """Another host's shell knows neither the search path nor the variables, and begins in another folder."""
    if subprocess.run([SSH, "somewhere", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a host name of one's own needs root")
    (tmp_path / "ssh").symlink_to(SSH)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = start(
        *(
            launcher,
            "--hosts",
            "node1,node2",
            "--interface",
            "lo",
            "--",
            "python",
            "-c",
            RANK,
            str(ROOT),
            str(tmp_path),
        ),
        PATH=path,
        OMPI_MCA_plm_rsh_agent=str(SSH),
        HOROVOD_CYCLE_TIME="3",
    )
    assert done.returncode == 0, done.stderr + done.stdout
    every = len(os.sched_getaffinity(0))
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text().strip() == f"node{rank + 1} 1 2 {every} None 3 True"


@pytest.mark.multiprocess
def test_each_rank_has_its_own_cores() -> None:
    if min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0))) < 2:
        pytest.skip("one core cannot be shared out")
    # (in one piece: where Python's output is not buffered, that of two ranks would be mixed)
    cores = "' '.join(map(str, sorted(os.sched_getaffinity(0))))"
    told = f"'cores ' + {cores} + ' threads ' + os.environ['OMP_NUM_THREADS'] + chr(10)"
    program = f"import os, sys; sys.stdout.write({told})"
    done = start("mpirun", "--hosts", "localhost:2", "--threads", "1", "--", "python", "-c", program)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("cores ")[1:]
    bound = [line.split(" threads ")[0].split() for line in lines]
    assert [line.split(" threads ")[1].strip() for line in lines] == ["1", "1"]
    assert len(bound) == 2
    assert not set(bound[0]) & set(bound[1])


def test_the_exit_status_is_that_of_the_program() -> None:
    assert start("mpirun", "--hosts", "localhost:1", "--", "sh", "-c", "exit 7").returncode == 7
