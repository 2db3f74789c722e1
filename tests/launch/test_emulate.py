"""launch/emulate.sh: its options and commands, and, where root and namespaces are, real runs and how they end."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "launch" / "emulate.sh")
EXCHANGE = str(Path(__file__).with_name("exchange.py"))
PATIENCE_S = 120
MARK = "EMULATE_TEST_RUN"

# Ranks that say that they are there and wait to be ended, one of them with a process that left its session.
LINGER = ["bash", "-c", "setsid sleep 301 & echo ready; sleep 300"]


def emulate(*arguments: str, before: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, SCRIPT, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        check=False,
    )


def dry_run(*arguments: str) -> list[list[str]]:
    """The commands of a dry run, as words."""
    done = emulate("--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def launcher() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulate", ROOT / "launch" / "emulate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["emulate"] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "launch")  # as for a script of that folder
        spec.loader.exec_module(module)
    return module


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the program comes after --"),
        ("--hosts 2", "the program comes after --"),
        ("--hosts 2 --", "the program comes after --"),
        ("python train.py", "the program comes after --"),
        ("--hosts 1 -- true", "'1' is not a whole number from 2 to 64"),
        ("--hosts many -- true", "'many' is not a whole number"),
        ("--ranks-per-host 0 -- true", "'0' is not a whole number from 1 to 256"),
        ("--rate 100 -- true", "'100' is not a rate like 10mbit"),
        ("--rate 10mbps -- true", "'10mbps' is not a rate like 10mbit"),
        ("--rate -1mbit -- true", "--rate"),
        ("--rate 0mbit -- true", "0mbit is not between 100kbit and 100gbit"),
        ("--rate 1000gbit -- true", "1000gbit is not between"),
        ("--latency 1ms -- true", "--latency is not emulated"),
        ("--latency=1ms -- true", "--latency is not emulated"),
        ("--env NAME -- true", "'NAME' is not NAME=VALUE"),
        ("--env 1A=2 -- true", "'1A=2' is not NAME=VALUE"),
        ("--host 2 -- true", "unrecognized arguments: --host"),
    ],
)
def test_wrong_options_are_named_and_end_with_status_2(arguments: str, message: str) -> None:
    done = emulate(*arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_command() -> None:
    done = emulate("--help")
    assert done.returncode == 0
    for option in ("--hosts", "--rate", "--ranks-per-host", "--env", "--dry-run"):
        assert option in done.stdout


def test_the_examples_of_the_launcher_run(launcher: ModuleType) -> None:
    assert doctest.testmod(launcher) == (0, 1)


# What would be done


def test_dry_run_prints_the_network() -> None:
    commands = [" ".join(words) for words in dry_run("--rate", "1gbit", "--", "true")]
    start = commands.index("ip link add switch type bridge")
    shape = "root tbf rate 1000000000bit burst 125000 latency 50ms"
    assert commands[start + 2 : start + 10] == [
        "ip netns add node1",
        "ip link add port1 type veth peer name eth0 netns node1",
        "ip link set port1 master switch up",
        "ip -n node1 address add 10.0.0.1/24 dev eth0",
        "ip -n node1 link set lo up",
        "ip -n node1 link set eth0 up",
        f"tc -n node1 qdisc add dev eth0 {shape}",
        f"tc qdisc add dev port1 {shape}",
    ]
    assert sum(command.startswith("ip netns add") for command in commands) == 2
    # What is not in a namespace of the run's own is not touched.
    assert commands[0] == "mount --make-rprivate /"
    assert not any("iptables" in command or "sysctl" in command for command in commands)


def test_a_slow_link_has_a_small_burst_and_small_bundles() -> None:
    commands = [" ".join(words) for words in dry_run("--rate", "10mbit", "--", "true")]
    assert "tc qdisc add dev port2 root tbf rate 10000000bit burst 16384 latency 50ms" in commands
    assert "ip -n node2 link set eth0 gso_max_size 15360" in commands


def test_an_unlimited_link_is_not_shaped() -> None:
    assert not any(words[0] == "tc" for words in dry_run("--rate", "unlimited", "--", "true"))


def test_dry_run_prints_the_job() -> None:
    program = ["python", "my train.py", "--name", "it's", "$HOME"]
    *_, variable, agent = dry_run("--hosts", "3", "--ranks-per-host", "2", "--env", "A=1 2", "--", *program)
    assert variable == ["export", "A=1 2"]
    assert agent[:2] == ["/run/hvd_compress-emulate/agent", "node1"]
    words = shlex.split(agent[2])
    assert words[:2] == ["exec", "mpirun"]
    assert words[-9:] == ["--map-by", "ppr:2:node", "-np", "6", *program]
    assert words[words.index("--host") + 1] == "node1:2,node2:2,node3:2"
    settings = {words[at + 1]: words[at + 2] for at, word in enumerate(words) if word == "--mca"}
    assert settings["plm_rsh_agent"] == agent[0]
    assert (settings["pml"], settings["btl"]) == ("ob1", "tcp,self,vader")
    assert settings["btl_tcp_if_include"] == settings["oob_tcp_if_include"] == "10.0.0.0/24"


def test_ranks_alone_on_their_hosts_have_only_the_link() -> None:
    words = shlex.split(dry_run("--", "true")[-1][2])
    assert words[words.index("btl") + 1] == "tcp,self"


# Refusals


def test_refused_without_root() -> None:
    # In a user namespace without a map of users, root is nobody.
    before = ("unshare", "--user") if os.geteuid() == 0 else ()
    if before and subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    done = emulate("--", "echo", "started", before=before)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "emulate: network namespaces need root; run it as root, or with sudo\n"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"ip", "tc"}, "ip, tc not found; on Debian and Ubuntu: apt-get install iproute2"),
        ({"tc", "hostname"}, "tc, hostname not found; on Debian and Ubuntu: apt-get install hostname iproute2"),
        ({"mpirun"}, "mpirun not found; run: make setup"),
    ],
)
def test_what_is_missing_is_named(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, missing: set[str], message: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in missing else f"/bin/{tool}")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with pytest.raises(launcher.Failed) as caught:
        launcher.check_machine()
    assert str(caught.value) == message


# Real runs


def why_not() -> str:
    """What this machine lacks for a real run; empty if nothing."""
    if os.geteuid() != 0:
        return "needs root"
    if any(
        shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None for tool in ("ip", "tc", "unshare")
    ):
        return "needs iproute2 and util-linux"
    # The machine's own network is left alone here too.
    probe = (
        "mount --make-rprivate / && mount -t proc proc /proc && ip link add one type bridge "
        "&& ip link add two type veth && tc qdisc add dev two root tbf rate 1mbit burst 16384 latency 50ms"
    )
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--net", "--ipc", "sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin; {probe}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


REASON = why_not()


def real(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.multiprocess(pytest.mark.skipif(bool(REASON), reason=REASON or "available")(test))


def machine() -> list[str]:
    """What a run must not change."""
    commands = (["ip", "-o", "address"], ["ip", "-d", "-o", "link"], ["tc", "qdisc"], ["ip", "netns", "list"])
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    return [*said, Path("/etc/hosts").read_text(), Path("/proc/sys/kernel/hostname").read_text()]


class Run:
    """A job in the background; its processes are known by a variable in their environment."""

    def __init__(self, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.launcher = subprocess.Popen(
            [SCRIPT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark},
            start_new_session=True,
        )
        self.namespaces: set[str] = set()

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def wait_ready(self, ranks: int = 2) -> None:
        """Until all ranks have said so; then note which namespaces there are."""
        assert self.launcher.stdout is not None
        seen = ""
        while seen.count("ready") < ranks:
            line = self.launcher.stdout.readline()
            assert line, f"ended early: {seen}"
            seen += line
        for process in self.processes():
            self.namespaces |= namespaces(process.pid)
        self.namespaces -= namespaces(os.getpid())
        assert sum(name.startswith("net:") for name in self.namespaces) == ranks + 1  # and the switch's

    def end(self) -> int:
        return self.launcher.wait(PATIENCE_S)

    def assert_nothing_left(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while True:
            processes = self.processes()
            held = {name for pid in psutil.pids() for name in namespaces(pid)} & self.namespaces
            if not processes and not held:
                return
            assert time.monotonic() < deadline, (processes, held)
            time.sleep(0.05)


def namespaces(pid: int) -> set[str]:
    found = set()
    for kind in ("net", "pid", "mnt", "ipc"):
        try:
            found.add(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
        except OSError:
            continue
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(*arguments: str) -> Run:
        runs.append(Run(*arguments))
        return runs[-1]

    before = machine()
    yield begin
    for run in runs:
        run.launcher.kill()
        run.launcher.communicate()
        for process in run.processes():
            process.kill()
    assert machine() == before


@real
@pytest.mark.parametrize(("hosts", "ranks"), [(2, 1), (3, 1), (2, 2)])
def test_hosts_exchange_at_no_more_than_the_rate(hosts: int, ranks: int) -> None:
    arguments = ["--hosts", str(hosts), "--ranks-per-host", str(ranks), "--rate", "100mbit"]
    done = emulate(*arguments, "--", "python", EXCHANGE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["hosts"] == [f"node{host}" for host in range(1, hosts + 1) for _ in range(ranks)]
    if ranks == 1:  # more share a host's memory, and what they say to each other is not on the link
        assert found["rate"] <= 1.2 * 100e6


@real
def test_ranks_get_the_environment_and_their_output_comes_through() -> None:
    program = (
        'printf "%s\\n" "$HOSTNAME|$HVD_COMPRESS_X|$HOROVOD_X|$PYTHONPATH|$TF_USE_LEGACY_KERAS|$Y"; echo problem >&2'
    )
    variables = {"HVD_COMPRESS_X": "a  b", "HOROVOD_X": "$1 'c'", "PYTHONPATH": "/some where"}
    done = emulate("--env", 'Y=2 "3', "--", "bash", "-c", program, **variables)
    expected = "|a  b|$1 'c'|/some where|1|2 \"3"
    assert sorted(done.stdout.splitlines()) == [f"node1{expected}", f"node2{expected}"]
    assert done.stderr == "problem\nproblem\n"
    assert done.returncode == 0


@real
def test_the_first_rank_gets_the_input() -> None:
    done = subprocess.run(
        [SCRIPT, "--", "cat"], input="one\ntwo\n", capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\n", "")


@real
@pytest.mark.parametrize(("end", "status"), [("exit 7", 7), ("kill -KILL $$", 137)])
def test_the_exit_status_is_the_job_s(end: str, status: int) -> None:
    program = f'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then {end}; else sleep 300; fi'
    assert emulate("--", "sh", "-c", program).returncode == status


@real
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_everything(start: Callable[..., Run], number: str, status: int) -> None:
    run = start("--", *LINGER)
    run.wait_ready()
    run.launcher.send_signal(signal.Signals[number])
    assert run.end() == status
    run.assert_nothing_left(within_s=0)


@real
def test_ctrl_c_ends_everything(start: Callable[..., Run]) -> None:
    run = start("--", *LINGER)
    run.wait_ready()
    os.killpg(run.launcher.pid, signal.SIGINT)  # as a terminal does it
    assert run.end() == 130
    run.assert_nothing_left(within_s=0)


@real
@pytest.mark.parametrize("victim", ["mpirun", "orted", "sleep"])
def test_a_killed_process_of_the_job_ends_everything(start: Callable[..., Run], victim: str) -> None:
    run = start("--", *LINGER[:2], "setsid sleep 301 & echo ready; exec sleep 300")
    run.wait_ready()
    commands = {process: process.cmdline() for process in run.processes()}
    found = [process for process, words in commands.items() if words[:1] == [victim] and "301" not in words]
    found[-1].kill()
    assert run.end() not in (0, 125)
    run.assert_nothing_left(within_s=0)


@real
def test_a_killed_launcher_leaves_nothing_for_the_next_run(start: Callable[..., Run]) -> None:
    run = start("--", *LINGER)
    run.wait_ready()
    run.launcher.kill()
    done = emulate("--", "hostname")  # at once
    assert sorted(done.stdout.split()) == ["node1", "node2"]
    assert run.end() == -signal.SIGKILL
    run.assert_nothing_left(within_s=90)  # the kernel takes namespaces down by and by


@real
@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.25, 0.4, 0.6])
def test_a_launcher_killed_while_it_sets_up_leaves_nothing(start: Callable[..., Run], seconds: float) -> None:
    run = start("--hosts", "8", "--", "sleep", "300")
    time.sleep(seconds)
    run.launcher.kill()
    run.end()
    run.assert_nothing_left(within_s=30)


@real
def test_two_runs_at_once_do_not_see_each_other(start: Callable[..., Run]) -> None:
    before = machine()
    other = start("--rate", "10mbit", "--", *LINGER)
    other.wait_ready()
    assert machine() == before  # also while a run goes on
    done = emulate("--hosts", "3", "--rate", "unlimited", "--", "python", EXCHANGE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hosts"] == ["node1", "node2", "node3"]
    assert other.launcher.poll() is None
    assert [process.name() for process in other.processes()].count("sleep") == 4
    other.launcher.terminate()
    assert other.end() == 143
    other.assert_nothing_left(within_s=0)


@real
def test_a_job_that_leaves_processes_behind_does_not(start: Callable[..., Run]) -> None:
    run = start("--", "bash", "-c", "setsid sleep 301 >/dev/null 2>&1 & echo ready; sleep 1")
    run.wait_ready()
    assert run.end() == 0
    run.assert_nothing_left(within_s=0)
