"""Run a job on several emulated hosts: network namespaces on one switch, each behind a link of a given rate.

1. This process forks one that is the first of a new PID namespace and dies with it (PR_SET_PDEATHSIG). When the first
   process of a PID namespace ends, for whatever reason, the kernel kills every other process in it.
2. That process makes itself a mount, a network and an IPC namespace. Its network namespace holds a bridge, the
   switch; each host is one more network namespace. Their names, Open MPI's session folders and an /etc/hosts that
   knows the hosts are on mounts that only these processes see.
3. It starts mpirun on the first host; mpirun reaches the others through emulate_agent.sh.

So there is nothing to clean up: no process and no namespace of a run outlives it, not even one that was killed with
SIGKILL, runs cannot see each other, and the machine's own network is never touched.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import command_line

HERE = Path(__file__).resolve().parent
MAX_HOSTS = 64
# Open MPI recognizes the link by this range. Nothing outside the namespaces sees it.
NETWORK = "10.0.0"
# Mount points: an empty folder outside.
PLACE = Path("/run/hvd_compress-emulate")
NAMES = Path("/run/netns")
HOSTS_FILE = Path("/etc/hosts")
# Programs, and the Debian packages that have them.
TOOLS = {"ip": "iproute2", "tc": "iproute2", "mount": "mount", "unshare": "util-linux", "hostname": "hostname"}

UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
LIMITS = (100 * 10**3, 100 * 10**9)
# What may pass at full speed after a pause, in seconds of the rate and bytes: as little as still keeps the rate. The
# queue holds 50 ms, then packets are dropped.
BURST_S, MIN_BURST = 0.001, 16 * 1024
QUEUE = "50ms"
# The kernel hands TCP's segments to a device in bundles up to this size. One that does not fit into the burst is taken
# apart in the queue, which costs throughput; so the bundles are made smaller.
BUNDLE, HEADERS = 64 * 1024, 1024

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 5.0  # for mpirun to end its ranks
FAILED = 125  # the launcher itself failed, as with env, timeout and docker

# linux/sched.h, linux/prctl.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x08000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1


class Failed(Exception):
    """The job could not be started; the message is for the person at the terminal."""


class Stopped(Exception):
    """A signal asks to end the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@dataclass(frozen=True)
class Cluster:
    """What to emulate. ``rate`` is in bits a second, None for as fast as the machine can."""

    hosts: int
    rate: int | None
    ranks_per_host: int

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.hosts + 1)]

    @property
    def hosts_file(self) -> str:
        lines = [f"{NETWORK}.{number} {name}" for number, name in enumerate(self.names, 1)]
        return "\n".join(["127.0.0.1 localhost", "::1 localhost", *lines, ""])

    def mounts(self) -> list[list[str]]:
        """Commands that give these processes their own view of some folders; ``PLACE`` then gets its files."""
        return [
            ["mount", "--make-rprivate", "/"],
            ["mount", "-t", "proc", "proc", "/proc"],
            ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(PLACE)],
            ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(NAMES)],
        ]

    def network(self) -> list[list[str]]:
        """Commands that make the hosts and their links, in a network namespace that has nothing in it yet."""
        commands = ["ip link add switch type bridge", "ip link set switch up"]
        for number, name in enumerate(self.names, 1):
            commands += [
                f"ip netns add {name}",
                f"ip link add port{number} type veth peer name eth0 netns {name}",
                f"ip link set port{number} master switch up",
                f"ip -n {name} address add {NETWORK}.{number}/24 dev eth0",
                f"ip -n {name} link set lo up",
                f"ip -n {name} link set eth0 up",
            ]
            if self.rate is not None:
                # A queue shapes what leaves a device: at eth0 what the host sends, at the switch what it receives.
                commands += shape(self.rate, "eth0", f"-n {name} ")
                commands.append(f"tc qdisc add dev port{number} {queue(self.rate)}")
        return [command.split() for command in commands]

    def job(self, command: Sequence[str]) -> list[str]:
        """The command that starts the job, on the first host."""
        link = f"{NETWORK}.0/24"
        settings = {
            "plm_rsh_agent": PLACE / "agent",
            "orte_tmpdir_base": PLACE,
            "oob_tcp_if_include": link,
            "pml": "ob1",
            # vader: shared memory, which Open MPI uses between ranks of one host.
            "btl": "tcp,self" if self.ranks_per_host == 1 else "tcp,self,vader",
            "btl_tcp_if_include": link,
            "btl_vader_backing_directory": PLACE,
        }
        mpirun = ["mpirun"]
        for name, value in settings.items():
            mpirun += ["--mca", name, str(value)]
        mpirun += ["--host", ",".join(f"{name}:{self.ranks_per_host}" for name in self.names)]
        mpirun += ["--map-by", f"ppr:{self.ranks_per_host}:node", "-np", str(self.hosts * self.ranks_per_host)]
        return [str(PLACE / "agent"), self.names[0], f"exec {shlex.join([*mpirun, *command])}"]


def burst_of(rate: int) -> int:
    return max(round(rate / 8 * BURST_S), MIN_BURST)


def queue(rate: int) -> str:
    """The arguments of tc that limit a device to so many bits a second."""
    return f"root tbf rate {rate}bit burst {burst_of(rate)} latency {QUEUE}"


def shape(rate: int, device: str, where: str = "") -> list[str]:
    """Commands that limit what leaves a device; ``where`` comes before the command's own words."""
    bundle = burst_of(rate) - HEADERS
    small = [f"ip {where}link set {device} gso_max_size {bundle}"] if bundle < BUNDLE else []
    return [*small, f"tc {where}qdisc add dev {device} {queue(rate)}"]


def unshape(device: str) -> list[str]:
    """Commands that take ``shape`` back."""
    return [f"tc qdisc del dev {device} root", f"ip link set {device} gso_max_size {BUNDLE}"]


def parse_rate(text: str) -> int | None:
    """Bits a second of a rate as tc writes them.

    >>> parse_rate("100mbit"), parse_rate("2.5Gbit"), parse_rate("unlimited")
    (100000000, 2500000000, None)
    """
    if text == "unlimited":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate like 10mbit, 2.5gbit, 500kbit or unlimited")
    rate = round(float(found[1]) * UNITS[found[2]])
    if not LIMITS[0] <= rate <= LIMITS[1]:
        raise argparse.ArgumentTypeError(f"{text} is not between 100kbit and 100gbit")
    return rate


def parse_variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high``, for argparse."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


class NoLatency(argparse.Action):
    """``--latency`` is what people ask next; the answer should not be "unrecognized arguments"."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error("--latency is not emulated: it would take the kernel's netem, which many kernels lack; see --rate")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the command after ``--``. Exits with status 2 if something is wrong with them."""
    parser = argparse.ArgumentParser(
        prog="launch/emulate.sh",
        usage="%(prog)s [options] -- [flags of mpirun] program [arguments]",
        description="Run a program under MPI on several emulated hosts: network namespaces on this machine, joined by "
        "a switch, each behind a link of the given rate in both directions. Needs root and iproute2. The job sees the "
        "caller's environment, and its exit status is passed on; 125 is a failure of the launcher itself.",
        epilog="example: launch/emulate.sh --hosts 4 --rate 100mbit -- python benchmarks/end_to_end.py --models ResNet",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--hosts", type=number(2, MAX_HOSTS), default=2, metavar="N", help="hosts, named node1 to nodeN (2)"
    )
    parser.add_argument(
        "--rate",
        type=parse_rate,
        default=10**9,
        metavar="RATE",
        help="of a host's link, as tc writes it: 10mbit, 2.5gbit, unlimited (1gbit)",
    )
    parser.add_argument("--ranks-per-host", type=number(1, 256), default=1, metavar="N", help="ranks on each host (1)")
    parser.add_argument(
        "--env",
        type=parse_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a variable for all ranks; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing; needs no root")
    parser.add_argument("--latency", action=NoLatency, nargs="?", help=argparse.SUPPRESS)
    return command_line.parse(parser, arguments)


def describe(cluster: Cluster, command: Sequence[str], variables: Sequence[tuple[str, str]]) -> str:
    """What a run does, as a script to read."""
    lines = ["# in new PID, mount, network and IPC namespaces, which end with this process:"]
    lines += map(shlex.join, cluster.mounts())
    lines += [f"cp {shlex.quote(str(HERE / 'emulate_agent.sh'))} {PLACE}/agent"]
    lines += [f"cat >{PLACE}/hosts <<END", *cluster.hosts_file.splitlines(), "END"]
    lines += map(shlex.join, [bind_hosts(), *cluster.network()])
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables]
    return "\n".join([*lines, shlex.join(cluster.job(command))])


def bind_hosts() -> list[str]:
    return ["mount", "--bind", str(PLACE / "hosts"), str(HOSTS_FILE)]


def check_machine() -> None:
    if os.geteuid() != 0:
        raise Failed("network namespaces need root; run it as root, or with sudo")
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise Failed(f"{', '.join(missing)} not found; on Debian and Ubuntu: apt-get install {packages}")
    if shutil.which("mpirun") is None:
        raise Failed("mpirun not found; run: make setup")


def call(function: str, *arguments: int) -> None:
    """A function of the C library that Python 3.11 does not have."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*map(ctypes.c_ulong, arguments)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(cluster: Cluster, command: Sequence[str]) -> int:
    """Run the job in namespaces of its own, and return its exit status. Ends with the process that it forks."""
    # An empty folder each, if they are not there: only namespaces see what is mounted on them.
    PLACE.mkdir(exist_ok=True)
    NAMES.mkdir(exist_ok=True)
    try:
        call("unshare", CLONE_NEWPID)
    except OSError as error:
        raise Failed(f"this root may not make namespaces ({error.strerror}); in a container: --privileged") from None
    # A signal that comes before there is somebody to pass it on to waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    mine, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(its)
        status = FAILED
        try:
            status = first_process(cluster, command, parent=mine)
        finally:
            sys.stderr.flush()
            os._exit(status)
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN or each != signal.SIGHUP:  # nohup
            signal.signal(each, lambda number, frame: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def first_process(cluster: Cluster, command: Sequence[str], parent: int) -> int:
    """The process that all others end with: makes the hosts, runs the job, returns its exit status."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent], [], [], 0)[0]:  # closed: the parent ended before this process was tied to it
        return FAILED
    # Not in the terminal's foreground: Ctrl-C is for the parent, and comes here, once, as a signal.
    os.setpgid(0, 0)
    try:
        for each in SIGNALS:
            signal.signal(each, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        call("unshare", CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC)
        make_hosts(cluster)
        return run_job(cluster.job(command))
    except Stopped as stopped:
        return stopped.status
    except (Failed, OSError) as error:
        print(f"emulate: {error}", file=sys.stderr)
        return FAILED


def stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def make_hosts(cluster: Cluster) -> None:
    for command in cluster.mounts():
        configure(command)
    shutil.copy(HERE / "emulate_agent.sh", PLACE / "agent")
    (PLACE / "hosts").write_text(cluster.hosts_file)
    for command in [bind_hosts(), *cluster.network()]:
        configure(command)


def configure(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")


def run_job(command: list[str]) -> int:
    job = subprocess.Popen(command)
    try:
        return wait(job.pid)
    except Stopped as stopped:
        with suppress(ProcessLookupError):
            os.kill(job.pid, signal.SIGTERM)
        with suppress(Stopped):  # once more: now
            wait(job.pid, GRACE_S)
        return stopped.status


def wait(process: int, seconds: float = 0) -> int:
    """The exit status of a child, as a shell has it. Orphans come to the first process; they are waited for here too.

    After ``seconds``, unless they are 0, it is no longer waited for.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG if seconds else 0)
        if ended == process:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if ended == 0:
            if time.monotonic() > deadline:
                return FAILED
            time.sleep(0.02)


def main() -> int:
    options, command = parse(sys.argv[1:])
    cluster = Cluster(options.hosts, options.rate, options.ranks_per_host)
    if options.dry_run:
        print(describe(cluster, command, options.env))
        return 0
    try:
        check_machine()
        os.environ.update(options.env)
        return run(cluster, command)
    except (Failed, OSError) as error:
        print(f"emulate: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
